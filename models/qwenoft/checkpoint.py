"""Checkpoints of QwenOFT: run folders of starVLA, and folders of our own."""

from __future__ import annotations

from pathlib import Path

from models.layouts.starvla_writer import WRITTEN as written
from models.layouts.starvla_writer import (
    Described,
    check_starvla,
    open_own,
    write_run,
)
from models.layouts.writers import Say
from models.qwenoft.config import QwenOFTConfig
from models.sources import Weights
from models.verbs import Synthesize

__all__ = ["check_writable", "open_weights", "write", "written"]

open_weights, check_writable = open_own, check_starvla


def write(
    folder: Path,
    weights: Weights,
    config: QwenOFTConfig,
    arguments: Synthesize,
    mark: str,
    say: Say,
) -> None:
    """A run folder as training leaves one; `say` the file of weights.

    Args:
        mark: to tell whose it is.
    """
    described = Described(
        framework="QwenOFT",
        action_model={
            "action_model_type": "MLP",
            "action_dim": config.head.action_dim,
            "action_hidden_dim": config.language.hidden_size,
            "action_horizon": config.head.action_horizon,
        },
        views=config.views,
        takes_state=False,
        text=config.prompt.text,
    )
    write_run(folder, weights, config, described, arguments, mark, say)
