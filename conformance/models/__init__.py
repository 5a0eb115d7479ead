"""KIV against the stock cache on a tiny random model of every type that transformers ships."""
