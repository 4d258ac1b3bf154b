"""Tests of `lmlite.server.api.llamacpp`."""
