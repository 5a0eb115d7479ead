"""Rotary factors that depend on the length of the text."""
