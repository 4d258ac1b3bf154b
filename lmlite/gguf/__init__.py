"""Model files: what a header says, what is checked, and how much memory a model takes."""
