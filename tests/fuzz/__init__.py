"""Inputs that nobody would write, in thousands."""
