"""What a model and its cache take, from the configuration alone: shared by every command that must know beforehand."""
