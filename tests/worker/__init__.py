"""Tests of `lmlite.worker`."""
