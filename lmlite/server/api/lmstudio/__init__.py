"""LM Studio's native REST API, v1 and v0."""
