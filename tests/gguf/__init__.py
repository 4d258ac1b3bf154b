"""Tests of `lmlite.gguf.file`."""
