"""Tests of `lmlite.worker.chat`."""
