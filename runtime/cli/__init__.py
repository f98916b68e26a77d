"""What all commands share: how they end, and what they say meanwhile."""
