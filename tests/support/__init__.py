"""Helpers that tests share: fakes, writers of files, processes."""
