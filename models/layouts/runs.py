"""Folders that others publish and that hold no configuration of ours: told apart, and opened.

In: a path. Out: a `Run`, whose configuration its layout put together from tensors and settings. The
trade-off: telling apart reads settings only and takes no torch, so a folder is known for what it is
before it is known to be whole.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from models.layouts import (
    lerobot_settings,
    prismatic_settings,
    showo_settings,
    starvla_config,
)
from models.policy_config import PolicyConfig
from runtime.image import ImageConfig

if TYPE_CHECKING:  # it takes torch
    from models.sources import Weights


@dataclass(frozen=True, slots=True)
class Run:
    """A policy as others store it, of which no weights have been read yet."""

    config: PolicyConfig
    image: ImageConfig
    statistics: dict[str, Any]
    tokenizer: Path
    weights: Weights
    said: tuple[str, ...]
    """What it was taken for, in lines."""


@dataclass(frozen=True, slots=True)
class Layout:
    """A row of the table."""

    is_in: Callable[[Path], bool]
    """Is this such a folder, or what stands for one? Light."""
    module: str
    """With `open_run`, which makes a `Run` of a path; it takes torch."""


LAYOUTS = (
    Layout(starvla_config.is_in, "models.layouts.starvla"),
    Layout(prismatic_settings.is_in, "models.layouts.prismatic"),
    Layout(lerobot_settings.is_in, "models.layouts.lerobot"),
    Layout(showo_settings.is_in, "models.layouts.showo"),
)


def is_in(path: Path) -> bool:
    """Is it of one of these layouts?"""
    return any(layout.is_in(path) for layout in LAYOUTS)


def open_run(path: Path) -> Run:
    """Everything but the weights, and where each of those is read.

    Args:
        path: that `is_in` says yes to.

    Raises:
        ValueError: a file is missing or damaged, of a policy that is not here, or says what does
            not fit together. CheckpointError if tensors do not.
    """
    module = next(layout.module for layout in LAYOUTS if layout.is_in(path))
    return cast(Run, importlib.import_module(module).open_run(path))


def counted(names: Iterable[str]) -> str:
    """Names in their order, equal ones that follow each other with their number."""
    return ", ".join(f"{len([*same])} {name}" for name, same in groupby(names))
