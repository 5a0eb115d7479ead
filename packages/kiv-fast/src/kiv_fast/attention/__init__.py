"""Softmax attention over parts and over tiles (SPEC 5.1, 7.1)."""
