"""The prompt of AnchorVLA4D: system, anchor, frame, instruction.

What ends with the anchor is the prefix, which is kept; the rest is the suffix. Of several anchors
each but the first has a prefix of its own, behind those before it: what depends on the first alone
is kept when the second changes.
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
    """The anchors, then the frame."""
    c = config.prompt
    before, rest = c.template.split("{anchor}")
    between = [""] * (config.anchors - 1)
    return PromptParts.of(
        [before, *between, *rest.split("{frame}")],
        image=(c.image_start, c.image_end),
        end_ids=(c.placeholder_token_id, *encoded(c.end, tokenizer)),
        tokenizer=tokenizer,
    )


def published_prompt(config: AnchorVLA4DConfig) -> tuple[PromptParts, int]:
    """As long as it is with the published tokenizer; ids mean nothing. And the length of a tail."""
    first, last = PUBLISHED
    counts = (first, *[1] * (config.anchors - 1), last)
    parts = PromptParts(
        before=tuple((0,) * count for count in counts),
        image_end=(0,),
        tail="{instruction}",
        end_ids=(config.prompt.placeholder_token_id, 0),
    )
    return parts, PUBLISHED_TAIL


def fixed_tokens(
    config: AnchorVLA4DConfig, parts: PromptParts, grid: tuple[int, int]
) -> dict[str, int]:
    """Tokens of every prefix, and of the suffix before the tail."""
    return {call: num_tokens(pieces) for call, pieces in segments(config, parts, grid).items()}


def segments(
    config: AnchorVLA4DConfig, parts: PromptParts, grid: tuple[int, int]
) -> dict[str, list[Segment]]:
    """Of every prefix, and of the suffix before the tail, by the name of the call."""
    image: Segment = (grid[0] // 2, grid[1] // 2)
    *heads, last = parts.before
    found: dict[str, list[Segment]] = {
        call: [len(head), image, len(parts.image_end)]
        for call, head in zip(prefixes(config), heads, strict=True)
    }
    return found | {"suffix": [len(last), image]}


def prefixes(config: AnchorVLA4DConfig) -> tuple[str, ...]:
    """The call of the decoder that ends with each anchor."""
    return ("prefix", *(f"{name}_prefix" for name in config.anchor_names[1:]))
