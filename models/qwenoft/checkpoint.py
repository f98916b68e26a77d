"""Checkpoints of QwenOFT: folders of our own."""

from __future__ import annotations

import re
from pathlib import Path

from models.layouts import hugging_face
from models.layouts.hugging_face import INDEX
from models.layouts.writers import Say
from models.qwenoft.config import QwenOFTConfig
from models.sources import Weights, parameter_shapes
from models.verbs import Synthesize

UNUSED = {"vlm.lm_head.weight": "speaks words, of which this policy says none"}
written = re.compile(rf"config\.json|model-\d{{5}}-of-\d{{5}}\.safetensors|{re.escape(INDEX)}")
"""What `write` leaves in a folder."""


def open_weights(path: Path, config: QwenOFTConfig) -> Weights:
    """See `models.family.Family.open_weights`."""
    return hugging_face.open_weights(
        path, parameter_shapes(config), side_files={}, unused_names=UNUSED
    )


def check_writable(config: QwenOFTConfig, arguments: Synthesize) -> None:
    raise ValueError("run folders are not written yet")


def write(
    folder: Path,
    weights: Weights,
    config: QwenOFTConfig,
    arguments: Synthesize,
    mark: str,
    say: Say,
) -> None:
    raise ValueError("run folders are not written yet")
