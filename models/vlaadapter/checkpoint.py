"""Checkpoints of VLA-Adapter: folders as its authors publish them, and folders of our own."""

from __future__ import annotations

from pathlib import Path

from models.layouts import hugging_face
from models.layouts.prismatic_writer import WRITTEN as written
from models.layouts.prismatic_writer import check_writable, write
from models.sources import Weights, parameter_shapes
from models.vlaadapter.config import VLAAdapterConfig

__all__ = ["check_writable", "open_weights", "write", "written"]


def open_weights(path: Path, config: VLAAdapterConfig) -> Weights:
    """Where each parameter of a policy in a folder of our own is read. Reads headers only.

    Raises:
        CheckpointError: no weights, files that are missing or damaged, or tensors that do not fit,
            all of them at once.
    """
    return hugging_face.open_weights(path, parameter_shapes(config), side_files={}, unused_names={})
