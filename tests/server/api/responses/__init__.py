"""Tests of `lmlite.server.api.responses`."""
