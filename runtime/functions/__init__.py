"""Stages of a graph that are no engines."""
