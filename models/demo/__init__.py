"""The shipped demo policy: its weights, how they were made, and recorded episodes."""

from pathlib import Path

CHECKPOINT = Path(__file__).parent / "checkpoint"
"""Folder of the trained policy, with its model card."""
BLINK_CHECKPOINT = Path(__file__).parent / "blink"
"""Folder of the trained policy that has something to remember."""
EPISODES = Path(__file__).parent / "episodes"
"""Recordings of the simulator's scripted experts."""
BLINK_EPISODES = Path(__file__).parent / "blink_episodes"
"""Recordings of the task for which that one was trained."""
HELD_OUT = Path(__file__).parent / "held_out"
"""More of them, on layouts beyond training's and `EPISODES`': nothing is calibrated on these."""
