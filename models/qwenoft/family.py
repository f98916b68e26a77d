"""QwenOFT as `models.family.Family` asks: this module is one."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import nn

from models.chat import PUBLISHED_TAIL, chat, fixed_tokens, published_chat
from models.networks.work import qwen_depths as depths
from models.networks.work import qwen_trunk_work as trunk_work
from models.prompt_parts import PromptParts, encoded
from models.qwenoft.checkpoint import check_writable, open_weights, write, written
from models.qwenoft.config import QwenOFTConfig
from models.qwenoft.model import QwenOFT, actions
from models.qwenoft.model import QwenOFT as model
from models.qwenoft.split import declare_inputs as inputs
from models.qwenoft.split import split
from models.qwenoft.work import engines_work, folded_layers
from runtime.image import ImageConfig

__all__ = [
    "actions", "check_writable", "depths", "engines_work", "fixed_tokens",
    "folded_layers", "inputs", "model", "open_weights", "predictor", "prompt", "published_prompt",
    "reference", "shapes", "split", "trunk_work", "write", "written",
]  # fmt: skip

ASKED = 16
"""Tokens that Qwen2.5's tokenizer makes of what asks for the actions, these left out."""


def shapes(config: QwenOFTConfig) -> QwenOFT:
    """On the meta device."""
    with torch.device("meta"):
        return QwenOFT(config)


def prompt(config: QwenOFTConfig, tokenizer: Tokenizer) -> PromptParts:
    """The views, then the instruction in its text and the action tokens."""
    parts = chat(config.prompt, config.views, config.text, tokenizer)
    return dataclasses.replace(parts, action_id=encoded(config.action_token, tokenizer)[0])


def published_prompt(config: QwenOFTConfig) -> tuple[PromptParts, int]:
    """Of the published tokenizer's lengths, where each action token is one."""
    parts = dataclasses.replace(published_chat(config.prompt, config.views), action_id=0)
    return parts, PUBLISHED_TAIL + ASKED + config.head.action_horizon


def predictor(model: QwenOFT) -> nn.Module:
    """The actions: they are not sampled."""
    return model.action_head


def reference(model: QwenOFT, tokenizer: Tokenizer, image: ImageConfig) -> Any:
    """From transformers, which is imported for it."""
    from models.qwenoft.reference import Composition

    return Composition(model, tokenizer, image)
