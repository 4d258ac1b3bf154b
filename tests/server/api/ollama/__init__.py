"""Tests of lmlite/server/api/ollama."""
