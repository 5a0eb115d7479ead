"""The attention and mask functions named "kiv", and what they ask of a call."""
