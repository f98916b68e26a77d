"""LeRobot's SmolVLA: a small language model, and an expert that acts on its keys and values."""
