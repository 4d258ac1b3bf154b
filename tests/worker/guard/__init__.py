"""Tests of `lmlite.worker.guard`."""
