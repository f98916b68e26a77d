"""Checkpoints of SG-VLA: folders of our own. The authors publish neither code nor weights."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NoReturn

from models.layouts.hugging_face import open_own as open_weights
from models.layouts.writers import Say
from models.sgvla.config import SGVLAConfig
from models.sources import Weights
from models.verbs import Synthesize

__all__ = ["check_writable", "open_weights", "write", "written"]

written = re.compile(r"(?!)")
"""Nothing."""


def check_writable(config: SGVLAConfig, arguments: Synthesize) -> NoReturn:
    """
    Raises:
        ValueError: always.
    """
    raise ValueError(
        "SG-VLA has no published layout to write: its authors published neither code nor weights. "
        "A folder of our own is what python -m models init writes"
    )


def write(
    folder: Path,
    weights: Weights,
    config: SGVLAConfig,
    arguments: Synthesize,
    mark: str,
    say: Say,
) -> None:
    """
    Raises:
        ValueError: always, see `check_writable`.
    """
    check_writable(config, arguments)
