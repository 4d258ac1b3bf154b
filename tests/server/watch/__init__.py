"""Tests of `lmlite.server.watch`."""
