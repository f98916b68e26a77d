"""The prompt of AnchorVLA4D: system, anchor, frame, instruction.

What ends with the anchor is the prefix, which is kept; the rest is the suffix.
"""

from __future__ import annotations

from tokenizers import Tokenizer

from models.anchorvla4d.config import AnchorVLA4DConfig
from models.prompt_parts import PromptParts, encoded
from runtime.prompt import Segment, num_tokens

PUBLISHED = (20, 6)
"""Tokens that Qwen2.5's tokenizer makes of what stands in front of the images."""
PUBLISHED_TAIL = 15
"""And of what stands behind the frame with a usual instruction, "put the spoon on the towel"."""


def prompt(config: AnchorVLA4DConfig, tokenizer: Tokenizer) -> PromptParts:
    """The anchor, then the frame."""
    c = config.prompt
    before, rest = c.template.split("{anchor}")
    return PromptParts.of(
        [before, *rest.split("{frame}")],
        image=(c.image_start, c.image_end),
        end_ids=(c.placeholder_token_id, *encoded(c.end, tokenizer)),
        tokenizer=tokenizer,
    )


def published_prompt(config: AnchorVLA4DConfig) -> tuple[PromptParts, int]:
    """As long as it is with the published tokenizer; ids mean nothing. And the length of a tail."""
    parts = PromptParts(
        before=tuple((0,) * count for count in PUBLISHED),
        image_end=(0,),
        tail="{instruction}",
        end_ids=(config.prompt.placeholder_token_id, 0),
    )
    return parts, PUBLISHED_TAIL


def fixed_tokens(
    config: AnchorVLA4DConfig, parts: PromptParts, grid: tuple[int, int]
) -> dict[str, int]:
    """Tokens of the prefix, and of the suffix before the tail."""
    _, prefix, suffix = segments(parts, grid)
    return {"prefix": num_tokens(prefix), "suffix": num_tokens(suffix)}


def segments(
    parts: PromptParts, grid: tuple[int, int]
) -> tuple[Segment, list[Segment], list[Segment]]:
    """An image's, the prefix's, and the suffix's before the tail."""
    image: Segment = (grid[0] // 2, grid[1] // 2)
    head, middle = parts.before
    return image, [len(head), image, len(parts.image_end)], [len(middle), image]
