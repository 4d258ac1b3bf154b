"""Tests of `lmlite.server.front`."""
