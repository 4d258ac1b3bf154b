"""Tests of `lmlite.cli.serve`."""
