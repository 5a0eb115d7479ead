"""Fast tests of the fidelity bench: no model is loaded."""
