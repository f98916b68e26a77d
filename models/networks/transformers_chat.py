"""One turn of Qwen's chat as `transformers` prepares it: pictures and text -> a model's inputs.

L = token, N = patches of one picture.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from tokenizers import Tokenizer
from torch import Tensor

from models.chat import PromptConfig
from models.networks.transformers_qwen import IMAGE_PAD, image_pad_id, image_processor
from runtime.image import ImageConfig


class ChatInputs(NamedTuple):
    """Of one observation."""

    pixel_values: Tensor
    """[pictures * N, patch_dim]."""
    image_grid_thw: Tensor
    """[pictures, 3]."""
    input_ids: Tensor
    """[1, L]."""
    position_ids: Tensor
    """[3, 1, L], M-RoPE."""
    attention_mask: Tensor
    """[1, L] bool: False for padding, which stands on the left."""


def chat_inputs(
    qwen: Any,
    image: ImageConfig,
    tokenizer: Tokenizer,
    c: PromptConfig,
    pictures: Sequence[NDArray[np.uint8]],
    text: str,
    padding: int = 0,
    labels: Mapping[int, str] = MappingProxyType({}),
) -> ChatInputs:
    """
    Args:
        qwen: the model, which knows its positions.
        pictures: uint8 [H, W, 3] RGB, in order.
        text: behind them, up to what ends the turn.
        padding: tokens of it in front, as a longer prompt in the same batch would leave.
        labels: text in front of a picture, by the picture's place.
    """
    shown = [Image.fromarray(picture) for picture in pictures]
    if image.size is not None:
        height, width = image.size
        shown = [picture.resize((width, height)) for picture in shown]
    batch: Any = image_processor(image)(images=shown, return_tensors="pt")
    grid = batch["image_grid_thw"]
    merged = [int(g.prod()) // image.merge_size**2 for g in grid]
    pad_id = image_pad_id(tokenizer)
    images = "".join(
        labels.get(place, "") + c.image_start + IMAGE_PAD * count + c.image_end
        for place, count in enumerate(merged)
    )
    ids = tokenizer.encode(c.before + images + text + c.after, add_special_tokens=False).ids
    nothing = [tokenizer.token_to_id("<|endoftext|>") or 0] * padding
    ids_1L = torch.tensor([[*nothing, *ids]])
    mask_1L = torch.arange(ids_1L.shape[1])[None] >= padding
    positions, _ = qwen.get_rope_index(
        ids_1L, torch.eq(ids_1L, pad_id).int(), image_grid_thw=grid, attention_mask=mask_1L.long()
    )
    return ChatInputs(batch["pixel_values"], grid, ids_1L, positions, mask_1L)
