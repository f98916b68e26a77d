"""Which layers may lose precision, by measurement."""
