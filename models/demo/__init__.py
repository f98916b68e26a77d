"""The shipped demo policy: its weights, how they were made, and recorded episodes."""

from pathlib import Path

CHECKPOINT = Path(__file__).parent / "checkpoint"
"""Folder of the trained policy, with its model card."""
EPISODES = Path(__file__).parent / "episodes"
"""Recordings of the simulator's scripted experts."""
