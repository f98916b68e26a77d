"""AnchorVLA4D as `models.family.Family` asks: this module is one."""

from __future__ import annotations

from typing import Any

import torch
from tokenizers import Tokenizer
from torch import nn

from models.anchorvla4d.checkpoint import check_writable, open_weights, write, written
from models.anchorvla4d.config import AnchorVLA4DConfig
from models.anchorvla4d.model import AnchorVLA4D, actions
from models.anchorvla4d.model import AnchorVLA4D as model
from models.anchorvla4d.prompt import fixed_tokens, prompt, published_prompt
from models.anchorvla4d.split import declare_inputs as inputs
from models.anchorvla4d.split import split
from models.anchorvla4d.work import depths, engines_work, folded_layers, trunk_work
from runtime.image import ImageConfig

__all__ = [
    "actions", "check_writable", "depths", "engines_work", "fixed_tokens",
    "folded_layers", "inputs", "model", "open_weights", "predictor", "prompt", "published_prompt",
    "reference", "shapes", "split", "trunk_work", "write", "written",
]  # fmt: skip


def shapes(config: AnchorVLA4DConfig) -> AnchorVLA4D:
    """On the meta device, but for the embedder of steps."""
    with torch.device("meta"):
        made = AnchorVLA4D(config)
    made.action_head.t_embedder.to_empty(device="cpu")
    return made


def predictor(model: AnchorVLA4D) -> nn.Module:
    """The noise of a step."""
    return model.action_head.final_layer


def reference(model: AnchorVLA4D, tokenizer: Tokenizer, image: ImageConfig) -> Any:
    """From transformers, uniception and diffusers, which are imported for it."""
    from models.anchorvla4d.reference import Composition

    return Composition(model, tokenizer, image)
