"""Tests of `lmlite.server`."""
