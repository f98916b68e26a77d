"""The prompt of QwenGR00T: one turn of Qwen's chat, the pictures before the text."""

from __future__ import annotations

from tokenizers import Tokenizer

from models.prompt_parts import PromptParts
from models.qwengr00t.config import QwenGR00TConfig


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
