"""Quantizing a language model that does not fit memory as a whole."""
