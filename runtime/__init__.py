"""Runs a bundle on the robot: verified, warm, and recomputing only what changed. No torch.

policy = runtime.load("bundle")
episode = policy.start(anchor=image, instruction="put the carrot on the plate", seed=0)
chunk = episode.act(image, state)
"""

from . import anchor
from .bundle import read_bundle
from .errors import BundleError, EngineError, EpisodeError, ObservationError
from .policy import Episode, Policy, Stats, load

__version__ = "0.1.0"

__all__ = [
    "BundleError",
    "EngineError",
    "Episode",
    "EpisodeError",
    "ObservationError",
    "Policy",
    "Stats",
    "anchor",
    "load",
    "read_bundle",
]
