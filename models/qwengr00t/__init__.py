"""starVLA's QwenGR00T: Qwen2.5-VL, and a flow-matching head that attends to all its tokens."""
