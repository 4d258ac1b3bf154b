"""The `lmlite` command: one file for each of its commands."""
