"""Checkpoints of UP-VLA: folders of our own."""

from __future__ import annotations

import re
from pathlib import Path

from models.layouts import hugging_face
from models.layouts.writers import Say
from models.sources import Weights, parameter_shapes
from models.upvla.config import UPVLAConfig
from models.verbs import Synthesize

written = re.compile(r"(?!)")
"""None: this family is not written yet."""


def open_weights(path: Path, config: UPVLAConfig) -> Weights:
    """Where each parameter of a policy in a folder of our own is read. Reads headers only.

    Raises:
        CheckpointError: no weights, files that are missing or damaged, or tensors that do not fit,
            all of them at once.
    """
    return hugging_face.open_weights(path, parameter_shapes(config), side_files={}, unused_names={})


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
