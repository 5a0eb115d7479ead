"""How bytes get from host memory to where the arithmetic is."""
