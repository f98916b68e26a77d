"""SmolVLA as `models.family.Family` asks: this module is one."""

from __future__ import annotations

from typing import Any

import torch
from tokenizers import Tokenizer
from torch import nn

from models.prompt_parts import PromptParts
from models.smolvla.checkpoint import check_writable, open_weights, write, written
from models.smolvla.config import SmolVLAConfig
from models.smolvla.model import SmolVLA, actions
from models.smolvla.model import SmolVLA as model
from models.smolvla.split import declare_inputs as inputs
from models.smolvla.split import fixed_tokens, split
from models.smolvla.work import depths, engines_work, folded_layers, trunk_work
from runtime.image import ImageConfig

__all__ = [
    "actions", "check_writable", "depths", "engines_work", "fixed_tokens",
    "folded_layers", "inputs", "model", "open_weights", "predictor", "prompt", "published_prompt",
    "reference", "shapes", "split", "trunk_work", "write", "written",
]  # fmt: skip

PUBLISHED_TAIL = 12
"""Tokens that SmolVLM2's tokenizer makes of a usual instruction and the end of its line."""


def shapes(config: SmolVLAConfig) -> SmolVLA:
    """On the meta device."""
    with torch.device("meta"):
        return SmolVLA(config)


def prompt(config: SmolVLAConfig, tokenizer: Tokenizer) -> PromptParts:
    """The views, with nothing around them, and the instruction in its text."""
    return published_prompt(config)[0]


def published_prompt(config: SmolVLAConfig) -> tuple[PromptParts, int]:
    """Of the published tokenizer's lengths."""
    parts = PromptParts(
        before=((),) * len(config.views), image_end=(), tail=config.prompt.text, end_ids=()
    )
    return parts, PUBLISHED_TAIL


def predictor(model: SmolVLA) -> nn.Module:
    """The velocity of a step."""
    return model.action_head.action_out_proj


def reference(model: SmolVLA, tokenizer: Tokenizer, image: ImageConfig) -> Any:
    """From transformers, which is imported for it."""
    from models.smolvla.reference import Composition

    return Composition(model, tokenizer, image)
