"""EventVLA as `models.family.Family` asks: this module is one."""

from __future__ import annotations

from typing import Any

import torch
from tokenizers import Tokenizer
from torch import nn

from models.chat import PUBLISHED_TAIL
from models.eventvla.checkpoint import check_writable, open_weights, write, written
from models.eventvla.config import EventVLAConfig
from models.eventvla.model import EventVLA, actions
from models.eventvla.model import EventVLA as model
from models.eventvla.prompt import prompt
from models.eventvla.split import declare_inputs as inputs
from models.eventvla.split import fixed_tokens, split
from models.eventvla.work import engines_work, folded_layers
from models.networks.work import qwen_depths as depths
from models.networks.work import qwen_trunk_work as trunk_work
from models.prompt_parts import PromptParts
from runtime.image import ImageConfig

__all__ = [
    "actions", "check_writable", "depths", "engines_work", "fixed_tokens",
    "folded_layers", "inputs", "model", "open_weights", "predictor", "prompt", "published_prompt",
    "reference", "shapes", "split", "trunk_work", "write", "written",
]  # fmt: skip

PUBLISHED, LABEL, ASKED = 8, 5, 31
"""Tokens that Qwen's tokenizer makes of what stands before the first picture, before the first
keyframe, and of what asks for the actions, these left out; counted by hand, not by the tokenizer.
"""


def shapes(config: EventVLAConfig) -> EventVLA:
    """On the meta device."""
    with torch.device("meta"):
        return EventVLA(config)


def published_prompt(config: EventVLAConfig) -> tuple[PromptParts, int]:
    """Of the published tokenizer's lengths, where each action token is one."""
    count = config.num_observed + config.most_keyframes
    sizes = {0: PUBLISHED, config.num_observed: LABEL}
    before = tuple((0,) * sizes.get(number, 1) for number in range(count))
    parts = PromptParts(
        before=before, image_end=(0,), tail="{instruction}", end_ids=(), action_id=0
    )
    return parts, PUBLISHED_TAIL + ASKED + config.head.action_horizon


def predictor(model: EventVLA) -> nn.Module:
    """The actions: they are not sampled."""
    return model.action_head


def reference(model: EventVLA, tokenizer: Tokenizer, image: ImageConfig) -> Any:
    """From transformers, which is imported for it."""
    from models.eventvla.reference import Composition

    return Composition(model, tokenizer, image)
