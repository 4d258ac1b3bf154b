"""Tests of `lmlite.worker.llama.model`."""
