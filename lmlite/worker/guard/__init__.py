"""Protects a worker from changed files, and the machine from a worker."""
