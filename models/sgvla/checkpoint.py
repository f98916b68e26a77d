"""Checkpoints of SG-VLA: folders of our own. The authors publish neither code nor weights."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NoReturn

from models.layouts import hugging_face
from models.layouts.writers import Say
from models.sgvla.config import SGVLAConfig
from models.sources import Weights, parameter_shapes
from models.verbs import Synthesize

written = re.compile(r"(?!)")
"""Nothing."""


def open_weights(path: Path, config: SGVLAConfig) -> Weights:
    """Where each parameter of a policy in a folder of our own is read. Reads headers only.

    Raises:
        CheckpointError: no weights, files that are missing or damaged, or tensors that do not fit,
            all of them at once.
    """
    return hugging_face.open_weights(path, parameter_shapes(config), side_files={}, unused_names={})


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
