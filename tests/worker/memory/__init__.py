"""Tests of `lmlite.worker.memory.memory`."""
