"""What agents send, as recorded."""
