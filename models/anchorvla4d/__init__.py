"""AnchorVLA4D: its configuration, its networks joined, its checkpoints, its cut into engines."""
