"""Small vectors that are read from hidden states beside the actions, as data."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal

_NAME = re.compile(r"[a-z]+(_[a-z]+)*")


@dataclass(frozen=True, kw_only=True, slots=True)
class ReadoutConfig:
    """A linear layer on the decoder's last hidden states, whose result no action needs: a leaf."""

    name: str
    """Of the leaf."""
    elements: tuple[str, ...]
    """What its numbers are called, in order."""
    unit: str
    """Of every number."""
    reads: Literal["end", "frame"] = "end"
    """`end`: the last token of the prompt, which attends to all before it. `frame`: the mean of the
    frame's image tokens, which stand before the instruction and know nothing of it."""

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise ValueError(
                f"readouts: a name must be small letters and single _ between them, got "
                f"{self.name!r}"
            )
        if not self.elements or len(set(self.elements)) < len(self.elements):
            raise ValueError(
                f"readouts.{self.name}: elements must be names that differ, at least one, got "
                f"{list(self.elements)}"
            )

    @property
    def width(self) -> int:
        """Numbers that come out."""
        return len(self.elements)


def check_readouts(readouts: Sequence[ReadoutConfig], taken: Collection[str]) -> None:
    """
    Args:
        taken: names of inputs and of other outputs.

    Raises:
        ValueError: two things of a policy would have one name.
    """
    names = [readout.name for readout in readouts]
    for name in names:
        if name in taken or names.count(name) > 1:
            raise ValueError(
                f"readouts: the name {name!r} is taken, each needs one of its own beside "
                f"{', '.join(sorted(taken))}"
            )
