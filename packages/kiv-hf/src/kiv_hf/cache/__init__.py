"""The cache that transformers gets: its layers, and how they change and go back together."""
