"""Checkpoints of UP-VLA: folders of our own."""

from __future__ import annotations

import re
from pathlib import Path

from models.layouts.hugging_face import open_own as open_weights
from models.layouts.writers import Say
from models.sources import Weights
from models.upvla.config import UPVLAConfig
from models.verbs import Synthesize

__all__ = ["check_writable", "open_weights", "write", "written"]

written = re.compile(r"(?!)")
"""None: this family is not written yet."""


def check_writable(config: UPVLAConfig, arguments: Synthesize) -> None:
    """
    Raises:
        ValueError: always.
    """
    raise ValueError(
        "folders as UP-VLA's authors publish them are not written yet; for random weights in one "
        "of our own: python -m models init"
    )


def write(
    folder: Path,
    weights: Weights,
    config: UPVLAConfig,
    arguments: Synthesize,
    mark: str,
    say: Say,
) -> None:
    """
    Raises:
        ValueError: always, see `check_writable`.
    """
    check_writable(config, arguments)
