"""Tests of `lmlite.server.forms`."""
