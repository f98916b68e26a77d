"""Checkpoints of EventVLA: folders of our own."""

from __future__ import annotations

from pathlib import Path

from models.eventvla.config import EventVLAConfig
from models.layouts.starvla_writer import WRITTEN as written
from models.layouts.starvla_writer import check_starvla, open_own
from models.layouts.writers import Say
from models.sources import Weights
from models.verbs import Synthesize

__all__ = ["check_writable", "open_weights", "write", "written"]

open_weights = open_own


def check_writable(config: EventVLAConfig, arguments: Synthesize) -> None:
    """
    Raises:
        ValueError: run folders of it are neither read nor written yet.
    """
    check_starvla(config, arguments)
    raise ValueError(
        f"run folders of {config.model_type} are not written yet: python -m models init writes a "
        "folder of our own"
    )


def write(
    folder: Path,
    weights: Weights,
    config: EventVLAConfig,
    arguments: Synthesize,
    mark: str,
    say: Say,
) -> None:
    """Not yet, see `check_writable`."""
    check_writable(config, arguments)
