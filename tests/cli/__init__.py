"""Tests of `lmlite.cli`."""
