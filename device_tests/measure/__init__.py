"""The measured run: latency, pace, growth, heat, conditions."""
