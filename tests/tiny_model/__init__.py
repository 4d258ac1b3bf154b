"""The embedded model: what it is taught, its training, its check."""
