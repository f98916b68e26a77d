"""Checkpoints of VLA-Adapter: folders as its authors publish them, and folders of our own."""

from __future__ import annotations

import re
from pathlib import Path

from models.layouts import hugging_face
from models.layouts.writers import Say
from models.sources import Weights, parameter_shapes
from models.verbs import Synthesize
from models.vlaadapter.config import VLAAdapterConfig

__all__ = ["check_writable", "open_weights", "write", "written"]

written = re.compile("")


def open_weights(path: Path, config: VLAAdapterConfig) -> Weights:
    return hugging_face.open_weights(path, parameter_shapes(config), side_files={}, unused_names={})


def check_writable(config: VLAAdapterConfig, arguments: Synthesize) -> None:
    raise ValueError("not yet")


def write(
    folder: Path,
    weights: Weights,
    config: VLAAdapterConfig,
    arguments: Synthesize,
    mark: str,
    say: Say,
) -> None:
    raise NotImplementedError
