"""How many tokens a call of the language engine takes: computed from the prompt, or checked.

In: the prompt around the images, the image's grid, and the instructions of the episodes. Out: the
number of slots, and words about a wasteful one. The trade-off: every slot that a prompt leaves
empty costs the time of a full one, and a prompt that does not fit cannot be told at all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from models.checkpoint import Checkpoint
from models.families import family_of
from runtime.errors import ObservationError

LEAST_MARGIN = 8
"""Tokens that an instruction may be longer than the longest one known; half as long again where
that is more."""
UNKNOWN_MARGIN = 32
"""The same where no episode tells what instructions are like: some two dozen words."""
MULTIPLE = 8
"""Rows that the products of a GPU take at a time."""
WASTEFUL = 0.25
"""Share of the slots that even the longest instruction with its margin leaves empty."""
MADE_UP_INSTRUCTION = "put the carrot on the plate"


@dataclass(frozen=True, kw_only=True, slots=True)
class Tokens:
    """Per call of the language engine."""

    slots: int
    """Prompts are padded to them."""
    room: int
    """What prompts take at most, margin included; computed slots are this, rounded up."""

    @property
    def warning(self) -> str:
        """About slots that no prompt will fill; empty if they are few."""
        empty = 1 - self.computed / self.slots
        if empty <= WASTEFUL:
            return ""
        return (
            f"--tokens {self.slots} leaves {empty:.0%} of every language call empty, which costs "
            f"its share of the time: leave it out for {self.computed}"
        )

    @property
    def computed(self) -> int:
        """Slots where none are asked for."""
        return -(-self.room // MULTIPLE) * MULTIPLE


def choose_tokens(
    checkpoint: Checkpoint,
    grid: tuple[int, int],
    instructions: Sequence[str],
    asked: int | None,
) -> Tokens:
    """As many as are asked for, otherwise as many as the prompt takes.

    Args:
        instructions: of the episodes; what is none is left to their reader.
        asked: --tokens.

    Raises:
        ValueError: the longest prompt does not fit what is asked for.
    """
    config = checkpoint.config
    fixed = family_of(config).fixed_tokens(config, checkpoint.parts, grid)
    shortest = len(checkpoint.tail_ids("a"))
    tails = {text: tail for text in instructions if (tail := _length(checkpoint, text))}
    margin = 0 if tails else UNKNOWN_MARGIN
    tails = tails or {MADE_UP_INSTRUCTION: len(checkpoint.tail_ids(MADE_UP_INSTRUCTION))}
    longest = max(tails, key=lambda text: tails[text])
    margin = margin or max(LEAST_MARGIN, (tails[longest] - shortest) // 2)
    *others, last = fixed.values()
    needed = max([*others, last + tails[longest]])
    room = max([*others, last + tails[longest] + margin])
    found = Tokens(slots=asked or 0, room=room)
    if asked is None:
        return Tokens(slots=found.computed, room=room)
    if asked < needed:
        raise ValueError(
            f"the prompt takes {_counted(fixed, tails[longest])} tokens at {grid[0]}x{grid[1]} "
            f"patches for {longest!r}, but --tokens is {asked}: give at least {needed}, or leave "
            f"it out for {found.computed}"
        )
    return found


def _counted(fixed: Mapping[str, int], tail: int) -> str:
    """Tokens of each call, in words; the tail belongs to the last."""
    *others, (last, count) = fixed.items()
    return " and ".join(f"{n} {call}" for call, n in [*others, (last, count + tail)])


def _length(checkpoint: Checkpoint, instruction: str) -> int:
    try:
        return len(checkpoint.tail_ids(instruction))
    except ObservationError:
        return 0
