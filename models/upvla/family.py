"""UP-VLA as `models.family.Family` asks: this module is one."""

from __future__ import annotations

from typing import Any

import torch
from tokenizers import Tokenizer
from torch import nn

from models.chat import INSTRUCTION
from models.prompt_parts import PromptParts
from models.upvla.checkpoint import check_writable, open_weights, write, written
from models.upvla.config import UPVLAConfig
from models.upvla.model import UPVLA, actions
from models.upvla.model import UPVLA as model
from models.upvla.split import declare_inputs as inputs
from models.upvla.split import fixed_tokens, split
from models.upvla.work import depths, engines_work, folded_layers, trunk_work
from runtime.image import ImageConfig

__all__ = [
    "actions", "check_writable", "depths", "engines_work", "fixed_tokens",
    "folded_layers", "inputs", "model", "open_weights", "predictor", "prompt", "published_prompt",
    "reference", "shapes", "split", "trunk_work", "write", "written",
]  # fmt: skip

PUBLISHED_TAIL = 12
"""Tokens that Phi's tokenizer makes of a usual instruction, and the one behind it."""


def shapes(config: UPVLAConfig) -> UPVLA:
    """On the meta device."""
    with torch.device("meta"):
        return UPVLA(config)


def prompt(config: UPVLAConfig, tokenizer: Tokenizer) -> PromptParts:
    """The instruction alone, between ids that are the same in every prompt."""
    p = config.prompt
    return PromptParts(before=(p.before,), image_end=(), tail=INSTRUCTION, end_ids=(p.eos,))


def published_prompt(config: UPVLAConfig) -> tuple[PromptParts, int]:
    """Of the published tokenizer's lengths."""
    p = config.prompt
    parts = PromptParts(before=(p.before,), image_end=(), tail=INSTRUCTION, end_ids=(p.eos,))
    return parts, PUBLISHED_TAIL


def predictor(model: UPVLA) -> nn.Module:
    """The actions: they are not sampled."""
    return model.to_logits


def reference(model: UPVLA, tokenizer: Tokenizer, image: ImageConfig) -> Any:
    """From transformers, which is imported for it."""
    from models.upvla.reference import Composition

    return Composition(model, tokenizer, image)
