"""starVLA's QwenOFT: Qwen2.5-VL with tokens for the actions, each regressed to one of them."""
