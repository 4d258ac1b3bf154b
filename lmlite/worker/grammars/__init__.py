"""Grammars that keep an answer in a required form."""
