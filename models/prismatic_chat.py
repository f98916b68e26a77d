"""The prompt of Prismatic policies on Qwen2.5: its first token, the pictures, and the rest.

Light to import: no torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from models.chat import INSTRUCTION
from models.prompt_parts import PromptParts

SYSTEM = "You are Qwen, created by Alibaba Cloud. You are a helpful assistant."
PUBLISHED_TAIL = 40
"""Tokens that Qwen2.5's tokenizer makes of the text with a usual instruction."""
SUFFIX = "suffix"
"""The call of the decoder that reads the text."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PromptConfig:
    """The pictures stand behind its first token."""

    before: str = "<|im_start|>"
    """A token of its own."""
    text: str = (
        f"system\n{SYSTEM}<|im_end|>\n<|im_start|>user\n"
        f"What action should the robot take to {INSTRUCTION}?<|im_end|>\n<|im_start|>assistant\n"
    )
    """`{instruction}` is replaced, in small letters."""

    def __post_init__(self) -> None:
        if self.text.count(INSTRUCTION) != 1:
            raise ValueError(f"prompt.text must hold {INSTRUCTION} once, got {self.text!r}")


def prismatic_parts(
    first: tuple[int, ...], num_pictures: int, text: str, end_ids: tuple[int, ...] = ()
) -> PromptParts:
    """Nothing stands between two pictures.

    Args:
        first: ids in front of the first one.
        end_ids: behind the text.
    """
    others = [()] * (num_pictures - 1)
    return PromptParts(
        before=(first, *others), image_end=(), tail=text, end_ids=end_ids, lowercase=True
    )


def call_of(picture: str) -> str:
    """The call of the decoder that reads a picture."""
    return f"read_{picture}"


def call_rows(pictures: Sequence[str], num_patches: int) -> tuple[int, ...]:
    """Tokens of each picture's call: the first has the prompt's first token too."""
    return tuple(num_patches + (number == 0) for number in range(len(pictures)))


def call_tokens(pictures: Sequence[str], num_patches: int) -> dict[str, int]:
    """Of each call those that every prompt has; the text has the last one to itself."""
    rows = zip(pictures, call_rows(pictures, num_patches), strict=True)
    return {call_of(picture): count for picture, count in rows} | {SUFFIX: 0}
