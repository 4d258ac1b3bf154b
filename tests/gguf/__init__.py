"""Tests of `lmlite.gguf`."""
