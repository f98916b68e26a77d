"""The loop from observation to action."""
