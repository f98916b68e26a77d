"""Runs a bundle on the robot: verified, warm, and recomputing only what changed. No torch.

with runtime.load("bundle") as policy:
    episode = policy.start(anchor=image, instruction="put the carrot on the plate", seed=0)
    chunk = episode.act(image, state)
"""

from . import anchor
from .bundle import read_bundle
from .control.loop import LoopConfig, Trace, run_episode
from .errors import (
    BundleError,
    EngineError,
    EpisodeError,
    ObservationError,
    RobotError,
    UnmeasuredWarning,
)
from .policy import Episode, Policy, Stats, load
from .robots.robot import Limits, Observation, Robot, Sensor

__version__ = "0.1.0"

__all__ = [
    "BundleError",
    "EngineError",
    "Episode",
    "EpisodeError",
    "Limits",
    "LoopConfig",
    "Observation",
    "ObservationError",
    "Policy",
    "Robot",
    "RobotError",
    "Sensor",
    "Stats",
    "Trace",
    "UnmeasuredWarning",
    "anchor",
    "load",
    "read_bundle",
    "run_episode",
]
