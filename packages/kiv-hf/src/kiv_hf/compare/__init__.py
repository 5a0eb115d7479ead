"""``impl="compare"``: an implementation beside the specification."""
