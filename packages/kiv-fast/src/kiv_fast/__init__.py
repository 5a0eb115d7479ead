"""KIV, tiered."""
