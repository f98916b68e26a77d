"""A measured run on paper."""
