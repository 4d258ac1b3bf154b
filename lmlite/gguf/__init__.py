"""Model files: reads and checks their headers, and estimates the memory of a model."""
