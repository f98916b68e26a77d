"""SG-VLA as `models.family.Family` asks: this module is one."""

from __future__ import annotations

from typing import Any

import torch
from tokenizers import Tokenizer
from torch import nn

from models.chat import INSTRUCTION
from models.networks.token_head import TokenHead
from models.prismatic_chat import PUBLISHED_TAIL, prismatic_parts
from models.prompt_parts import PromptParts, encoded
from models.sgvla.checkpoint import check_writable, open_weights, write, written
from models.sgvla.config import SGVLAConfig
from models.sgvla.model import SGVLA, actions
from models.sgvla.model import SGVLA as model
from models.sgvla.split import declare_inputs as inputs
from models.sgvla.split import fixed_tokens, split
from models.sgvla.work import depths, engines_work, folded_layers, trunk_work
from runtime.image import ImageConfig

__all__ = [
    "actions", "check_writable", "depths", "engines_work", "fixed_tokens",
    "folded_layers", "inputs", "model", "open_weights", "predictor", "prompt", "published_prompt",
    "reference", "shapes", "split", "trunk_work", "write", "written",
]  # fmt: skip


def shapes(config: SGVLAConfig) -> SGVLA:
    """On the meta device."""
    with torch.device("meta"):
        return SGVLA(config)


def prompt(config: SGVLAConfig, tokenizer: Tokenizer) -> PromptParts:
    """The first token, the pictures, and the instruction in its text."""
    c = config.prompt
    return prismatic_parts(encoded(c.before, tokenizer), len(config.pictures), c.text)


def published_prompt(config: SGVLAConfig) -> tuple[PromptParts, int]:
    """Of the published tokenizer's lengths."""
    return prismatic_parts((0,), len(config.pictures), INSTRUCTION), PUBLISHED_TAIL


def predictor(model: SGVLA) -> nn.Module:
    """The velocity of a step, or the scores of a token."""
    if isinstance(model.action_head, TokenHead):
        return model.action_head
    return model.action_head.action_out_proj


def reference(model: SGVLA, tokenizer: Tokenizer, image: ImageConfig) -> Any:
    """From transformers, which is imported for it."""
    from models.sgvla.reference import Composition
    from models.sgvla.token_reference import TokenComposition

    kind = TokenComposition if isinstance(model.action_head, TokenHead) else Composition
    return kind(model, tokenizer, image)
