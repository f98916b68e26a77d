"""QwenGR00T as `models.family.Family` asks: this module is one."""

from __future__ import annotations

from typing import Any

import torch
from tokenizers import Tokenizer
from torch import nn

from models.chat import PUBLISHED_TAIL, chat, fixed_tokens, published_chat
from models.networks.work import qwen_depths as depths
from models.networks.work import qwen_trunk_work as trunk_work
from models.prompt_parts import PromptParts
from models.qwengr00t.checkpoint import check_writable, open_weights, write, written
from models.qwengr00t.config import QwenGR00TConfig
from models.qwengr00t.model import QwenGR00T, actions
from models.qwengr00t.model import QwenGR00T as model
from models.qwengr00t.split import declare_inputs as inputs
from models.qwengr00t.split import split
from models.qwengr00t.work import engines_work, folded_layers
from runtime.image import ImageConfig

__all__ = [
    "actions", "check_writable", "depths", "engines_work", "fixed_tokens",
    "folded_layers", "inputs", "model", "open_weights", "predictor", "prompt", "published_prompt",
    "reference", "shapes", "split", "trunk_work", "write", "written",
]  # fmt: skip


def shapes(config: QwenGR00TConfig) -> QwenGR00T:
    """On the meta device."""
    with torch.device("meta"):
        return QwenGR00T(config)


def prompt(config: QwenGR00TConfig, tokenizer: Tokenizer) -> PromptParts:
    """The views, then the instruction in its text."""
    return chat(config.prompt, config.views, config.prompt.text, tokenizer)


def published_prompt(config: QwenGR00TConfig) -> tuple[PromptParts, int]:
    """Of the published tokenizer's lengths, with the instruction alone."""
    return published_chat(config.prompt, config.views), PUBLISHED_TAIL


def predictor(model: QwenGR00T) -> nn.Module:
    """The velocity of a step, of the rows of its actions alone."""
    return model.action_head.action_decoder


def reference(model: QwenGR00T, tokenizer: Tokenizer, image: ImageConfig) -> Any:
    """From transformers and diffusers, which are imported for it."""
    from models.qwengr00t.reference import Composition

    return Composition(model, tokenizer, image)
