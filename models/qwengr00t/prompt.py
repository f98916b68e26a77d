"""The prompt of QwenGR00T: one turn of Qwen's chat, the pictures before the text."""

from __future__ import annotations

from tokenizers import Tokenizer

from models.prompt_parts import PromptParts
from models.qwengr00t.config import QwenGR00TConfig
from runtime.prompt import Segment, num_tokens

PUBLISHED = 15
"""Tokens that Qwen2.5's tokenizer makes of what stands in front of the first picture."""
PUBLISHED_TAIL = 12
"""And of what stands behind the last one with a usual instruction, "put the spoon on the towel"."""


def prompt(config: QwenGR00TConfig, tokenizer: Tokenizer) -> PromptParts:
    """Nothing stands between two pictures, and nothing behind the text is an id of its own."""
    c = config.prompt
    between = [""] * (len(config.views) - 1)
    return PromptParts.of(
        [c.before, *between, c.text + c.after],
        image=(c.image_start, c.image_end),
        end_ids=(),
        tokenizer=tokenizer,
    )


def published_prompt(config: QwenGR00TConfig) -> tuple[PromptParts, int]:
    """As long as it is with the published tokenizer; ids mean nothing. And the length of a tail."""
    parts = PromptParts(
        before=((0,) * PUBLISHED, *((0,) for _ in config.views[1:])),
        image_end=(0,),
        tail="{instruction}",
        end_ids=(),
    )
    return parts, PUBLISHED_TAIL


def fixed_tokens(parts: PromptParts, grid: tuple[int, int]) -> dict[str, int]:
    """Tokens before the first picture, and from there to the tail."""
    prefix, suffix = segments(parts, grid)
    return {"prefix": prefix, "suffix": num_tokens(suffix)}


def segments(parts: PromptParts, grid: tuple[int, int]) -> tuple[int, list[Segment]]:
    """Of the prefix, and of the suffix before the tail."""
    picture: Segment = (grid[0] // 2, grid[1] // 2)
    suffix: list[Segment] = [picture]
    for before in parts.before[1:]:
        suffix += [len(parts.image_end) + len(before), picture]
    return len(parts.before[0]), suffix
