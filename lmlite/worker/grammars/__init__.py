"""Grammars that hold an answer to a form."""
