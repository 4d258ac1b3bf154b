"""Tests of `lmlite.worker.grammars`."""
