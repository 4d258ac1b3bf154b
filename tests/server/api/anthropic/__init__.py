"""Tests of `lmlite.server.api.anthropic`."""
