"""Runs a bundle on the robot: verified, warm, and recomputing only what changed. No torch.

with runtime.load("bundle") as policy:
    with policy.start(instruction="put the carrot on the plate", seed=0) as episode:
        answer = episode.act({"frame": image, "state": state})
"""

from . import anchor
from .bundle import read_bundle
from .control.loop import LoopConfig, run_episode
from .control.trace import Trace
from .declarations import Input, Output
from .episode import Answer, Episode, Stats
from .errors import (
    BundleError,
    EngineError,
    EpisodeError,
    ObservationError,
    RobotError,
    UnmeasuredWarning,
)
from .policy import Policy, load
from .robots.description import Description, read_description
from .robots.live import LiveRobot
from .robots.robot import Limits, Observation, Robot, Sensor

__version__ = "0.1.0"

__all__ = [
    "Answer",
    "BundleError",
    "Description",
    "EngineError",
    "Episode",
    "EpisodeError",
    "Input",
    "Limits",
    "LiveRobot",
    "LoopConfig",
    "Observation",
    "ObservationError",
    "Output",
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
    "read_description",
    "run_episode",
]
