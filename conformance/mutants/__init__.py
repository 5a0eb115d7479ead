"""Deliberate faults in a correct store; the suite must find every one (`python -m conformance.mutants`)."""
