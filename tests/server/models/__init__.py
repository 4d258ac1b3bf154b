"""Tests of `lmlite.server.models`."""
