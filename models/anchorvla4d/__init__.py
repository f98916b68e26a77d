"""AnchorVLA4D: its networks, its configuration, and how it is cut into engines."""
