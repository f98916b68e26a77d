"""EventVLA: Qwen3-VL with tokens for the actions, and pictures kept of what its own head finds."""
