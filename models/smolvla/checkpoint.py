"""Checkpoints of SmolVLA: folders of our own."""

from __future__ import annotations

import re
from pathlib import Path

from models.layouts.hugging_face import open_own as open_weights
from models.layouts.writers import Say
from models.smolvla.config import SmolVLAConfig
from models.sources import Weights
from models.verbs import Synthesize

__all__ = ["check_writable", "open_weights", "write", "written"]

written = re.compile(r"(?!)")
"""Nothing is."""


def check_writable(config: SmolVLAConfig, arguments: Synthesize) -> None:
    """
    Raises:
        ValueError: always: no layout of others is written for this family.
    """
    raise ValueError(
        f"a {config.model_type} is not written in a layout of others yet: make one of our own, "
        "python -m models init"
    )


def write(
    folder: Path,
    weights: Weights,
    config: SmolVLAConfig,
    arguments: Synthesize,
    mark: str,
    say: Say,
) -> None:
    """
    Raises:
        ValueError: see `check_writable`.
    """
    check_writable(config, arguments)
