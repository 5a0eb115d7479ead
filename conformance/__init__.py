"""The conformance suite: is an implementation of the contract equal to SPEC.md? Start with `checks`."""
