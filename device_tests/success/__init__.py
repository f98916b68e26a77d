"""Success rates in closed loop."""
