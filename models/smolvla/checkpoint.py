"""Checkpoints of SmolVLA: folders of our own."""

from __future__ import annotations

import re
from pathlib import Path

from models.layouts import hugging_face
from models.layouts.writers import Say
from models.smolvla.config import SmolVLAConfig
from models.sources import Weights, parameter_shapes
from models.verbs import Synthesize

written = re.compile(r"(?!)")
"""Nothing is."""


def open_weights(path: Path, config: SmolVLAConfig) -> Weights:
    """Where each parameter of a policy in a folder of our own is read. Reads headers only.

    Raises:
        CheckpointError: no weights, files that are missing or damaged, or tensors that do not fit,
            all of them at once.
    """
    return hugging_face.open_weights(path, parameter_shapes(config), side_files={}, unused_names={})


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
