"""The long regime: indices of cold tokens compared where the candidates are few of many, on real keys and queries."""
