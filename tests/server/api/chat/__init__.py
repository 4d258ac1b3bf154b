"""Tests of `lmlite.server.api.chat`."""
