"""Retrieval: from the estimates of all cold tokens to a block's answer (SPEC 4, 5.2 to 5.4, 6)."""
