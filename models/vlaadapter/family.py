"""VLA-Adapter as `models.family.Family` asks: this module is one."""

from __future__ import annotations

from typing import Any

import torch
from tokenizers import Tokenizer
from torch import nn

from models.chat import INSTRUCTION
from models.prismatic_chat import PUBLISHED_TAIL, prismatic_parts
from models.prompt_parts import PromptParts, encoded
from models.vlaadapter.checkpoint import check_writable, open_weights, write, written
from models.vlaadapter.config import VLAAdapterConfig
from models.vlaadapter.model import VLAAdapter, actions
from models.vlaadapter.model import VLAAdapter as model
from models.vlaadapter.split import declare_inputs as inputs
from models.vlaadapter.split import fixed_tokens, split
from models.vlaadapter.work import depths, engines_work, folded_layers, trunk_work
from runtime.image import ImageConfig

__all__ = [
    "actions", "check_writable", "depths", "engines_work", "fixed_tokens",
    "folded_layers", "inputs", "model", "open_weights", "predictor", "prompt", "published_prompt",
    "reference", "shapes", "split", "trunk_work", "write", "written",
]  # fmt: skip


def shapes(config: VLAAdapterConfig) -> VLAAdapter:
    """On the meta device, but for what stands in front of the head's blocks: a constant."""
    with torch.device("meta"):
        return VLAAdapter(config)


def prompt(config: VLAAdapterConfig, tokenizer: Tokenizer) -> PromptParts:
    """The first token, the views, the instruction in its text, and the queries that are read."""
    c = config.prompt
    return _parts(config, encoded(c.before, tokenizer), c.text)


def published_prompt(config: VLAAdapterConfig) -> tuple[PromptParts, int]:
    """Of the published tokenizer's lengths."""
    parts = _parts(config, (0,), INSTRUCTION)
    return parts, PUBLISHED_TAIL + len(parts.end_ids)


def predictor(model: VLAAdapter) -> nn.Module:
    """The actions: they are not sampled."""
    return model.action_head.model


def reference(model: VLAAdapter, tokenizer: Tokenizer, image: ImageConfig) -> Any:
    """From transformers, which is imported for it."""
    from models.vlaadapter.reference import Composition

    return Composition(model, tokenizer, image)


def _parts(config: VLAAdapterConfig, first: tuple[int, ...], text: str) -> PromptParts:
    """The queries are ids behind the vocabulary's: all but the last one, which is never read."""
    start = config.language.vocab_size
    queries = tuple(range(start, start + config.head.num_queries - 1))
    return prismatic_parts(first, len(config.views), text, queries)
