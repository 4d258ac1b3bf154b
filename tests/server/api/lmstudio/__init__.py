"""Tests of `lmlite.server.api.lmstudio`."""
