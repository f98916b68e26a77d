"""One turn of Qwen's chat: the pictures of all views, and then the text. Light to import."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tokenizers import Tokenizer

from models.networks.config import AnyLanguageConfig, Qwen3LanguageConfig
from models.prompt_parts import PromptParts
from runtime.prompt import Segment, num_tokens

INSTRUCTION = "{instruction}"
SYSTEM = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
USER = "<|im_start|>user\n"
PUBLISHED_SYSTEM, PUBLISHED_USER = 11, 4
"""Tokens that Qwen's tokenizer makes of the one, and of the other with the start of a picture."""
PUBLISHED_TAIL = 12
"""And of what stands behind the last one with a usual instruction, "put the spoon on the towel"."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PromptConfig:
    """`{instruction}` is replaced."""

    before: str = SYSTEM + USER
    text: str = INSTRUCTION
    """`CoT_prompt` of the run's config.yaml."""
    after: str = "<|im_end|>\n<|im_start|>assistant\n"
    image_start: str = "<|vision_start|>"
    image_end: str = "<|vision_end|>"

    def __post_init__(self) -> None:
        if self.text.count(INSTRUCTION) != 1:
            raise ValueError(f"prompt.text must hold {INSTRUCTION} once, got {self.text!r}")


def own_chat(language: AnyLanguageConfig, text: str = INSTRUCTION) -> PromptConfig:
    """As the model's own template has it where no system turn is given: Qwen2.5-VL's adds one."""
    has_none = isinstance(language, Qwen3LanguageConfig)
    return PromptConfig(before=USER if has_none else SYSTEM + USER, text=text)


def check_views(views: Sequence[str]) -> None:
    """
    Raises:
        ValueError: none, or a name twice.
    """
    if not views or len(set(views)) != len(views):
        raise ValueError(f"views must name at least one camera, each once, got {views}")


def chat(c: PromptConfig, views: Sequence[str], text: str, tokenizer: Tokenizer) -> PromptParts:
    """Nothing stands between two pictures, and nothing behind the text is an id of its own.

    Args:
        text: around the instruction.
    """
    between = [""] * (len(views) - 1)
    return PromptParts.of(
        [c.before, *between, text + c.after],
        image=(c.image_start, c.image_end),
        end_ids=(),
        tokenizer=tokenizer,
    )


def published_chat(c: PromptConfig, views: Sequence[str]) -> PromptParts:
    """As long as it is with the published tokenizer; ids mean nothing."""
    first = PUBLISHED_USER + (PUBLISHED_SYSTEM if c.before.startswith(SYSTEM) else 0)
    return PromptParts(
        before=((0,) * first, *((0,) for _ in views[1:])),
        image_end=(0,),
        tail=INSTRUCTION,
        end_ids=(),
    )


def fixed_tokens(config: Any, parts: PromptParts, grid: tuple[int, int]) -> dict[str, int]:
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
