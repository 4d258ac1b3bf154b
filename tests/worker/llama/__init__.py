"""Tests of `lmlite.worker.llama`."""
