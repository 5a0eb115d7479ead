"""Page numbers, and what is noted for each page or token (SPEC 2.3, 2.4)."""
