"""What the inputs of an EventVLA policy are called, in the order of its prompt. Light to import."""

from __future__ import annotations

from models.eventvla.config import EventVLAConfig

KEYFRAMES = "keyframes"
"""The input that says how many there are."""
PROBABILITIES = "event_probabilities"
"""The leaf that says how likely each step of a chunk is an event."""


def observed_names(config: EventVLAConfig) -> tuple[str, ...]:
    """Pictures of the first step, of each delay and of now, each of all views."""
    moments = ["first_{}", *(f"{{}}_{steps}_ago" for steps in config.delays), "{}"]
    return tuple(moment.format(view) for moment in moments for view in config.views)


def slot_names(config: EventVLAConfig) -> tuple[str, ...]:
    """Keyframes, the oldest first."""
    return tuple(f"keyframe_{number}" for number in range(config.most_keyframes))
