"""KIV for transformers."""
