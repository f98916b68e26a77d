"""Families of policies in torch, the networks they share, and checkpoints they are read from."""
