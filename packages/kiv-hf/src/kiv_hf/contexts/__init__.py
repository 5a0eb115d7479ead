"""Contexts on disk: a cache is saved to a folder and read again, in the format of docs/format.md."""
