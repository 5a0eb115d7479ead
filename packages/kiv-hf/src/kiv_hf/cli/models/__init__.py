"""Where a model comes from: a hub id, a folder or a ``.gguf`` file."""
