"""The process that owns the port: reads HTTP, supervises workers, writes answers."""
