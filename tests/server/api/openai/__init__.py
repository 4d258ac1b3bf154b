"""Tests of `lmlite.server.api.openai`."""
