"""Tests of `lmlite.server.api`."""
