"""Qwen3-VL beside transformers: configurations, seeded random weights, prompts with pictures."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from models.networks.config import Qwen3LanguageConfig, Qwen3VisionConfig
from models.networks.transformers_qwen import qwen
from models.networks.vision_language import VisionLanguage
from models.random_weights import random_tensors
from runtime.image import ImageConfig
from runtime.prompt import Segment
from tests.oracles import normal

IMAGE_PAD = 500
IMAGE = ImageConfig(
    min_pixels=1,
    max_pixels=512 * 512,
    patch_size=16,
    image_mean=(0.5, 0.5, 0.5),
    image_std=(0.5, 0.5, 0.5),
)


class Pair(NamedTuple):
    """Our backbone, and transformers' with the same weights."""

    ours: VisionLanguage
    oracle: Any
    vision: Qwen3VisionConfig
    language: Qwen3LanguageConfig


def small() -> tuple[Qwen3VisionConfig, Qwen3LanguageConfig]:
    """Every structure, and no two sizes alike.

    The epsilon is large, so that each norm shows it, and the rotary base small, so that each
    section tells positions apart.
    """
    vision = Qwen3VisionConfig(
        depth=4,
        hidden_size=64,
        intermediate_size=104,
        num_heads=4,
        out_hidden_size=80,
        num_position_embeddings=49,
        deepstack_visual_indexes=(0, 2),
    )
    language = Qwen3LanguageConfig(
        num_hidden_layers=4,
        hidden_size=80,
        intermediate_size=136,
        num_attention_heads=6,
        num_key_value_heads=2,
        vocab_size=512,
        rope_theta=10.0,
        mrope_section=(5, 4, 3),
        head_dim=24,
        rms_norm_eps=1e-2,
    )
    return vision, language


def wide() -> tuple[Qwen3VisionConfig, Qwen3LanguageConfig]:
    """The published widths of the 4B model, few layers, and the demo's vocabulary."""
    vision = Qwen3VisionConfig(
        depth=3,
        hidden_size=1024,
        intermediate_size=4096,
        num_heads=16,
        out_hidden_size=2560,
        num_position_embeddings=2304,
        deepstack_visual_indexes=(0, 1),
    )
    language = Qwen3LanguageConfig(
        num_hidden_layers=2,
        hidden_size=2560,
        intermediate_size=9728,
        num_attention_heads=32,
        num_key_value_heads=8,
        vocab_size=512,
        rope_theta=5e6,
        mrope_section=(24, 20, 20),
        head_dim=128,
    )
    return vision, language


CONFIGS = {"small": small, "wide": wide}


def pair_of(configs: tuple[Qwen3VisionConfig, Qwen3LanguageConfig]) -> Pair:
    vision, language = configs
    with torch.device("meta"):
        ours = VisionLanguage(vision, language)
    ours.load_state_dict(dict(random_tensors(ours, 0)), assign=True)
    oracle = qwen(vision, language, IMAGE_PAD)
    shared = {
        name.replace("model.", "language_model.", 1) if name.startswith("model.") else name: tensor
        for name, tensor in ours.state_dict().items()
    }
    oracle.load_state_dict(shared, strict=True, assign=True)
    for module in (ours, oracle):
        frozen(module)
    return Pair(ours, oracle, vision, language)


def frozen(module: nn.Module) -> nn.Module:
    return module.eval().requires_grad_(False)


class Prompt(NamedTuple):
    """Text of 3 tokens before each picture, and 5 behind the last one."""

    ids: Tensor
    """[1, L]."""
    grids: Tensor
    """[pictures, 3]."""
    segments: list[Segment]
    is_picture: Tensor
    """[L] bool."""


def prompt_of(grids: list[tuple[int, int]]) -> Prompt:
    segments: list[Segment] = []
    ids: list[int] = []
    for rows, columns in grids:
        segments += [3, (rows // 2, columns // 2)]
        ids += [7, 8, 9] + [IMAGE_PAD] * (rows * columns // 4)
    row = torch.tensor([[*ids, 1, 2, 3, 4, 5]])
    thw = torch.tensor([[1, *grid] for grid in grids])
    return Prompt(row, thw, [*segments, 5], row[0] == IMAGE_PAD)


def positions_of(pair: Pair, prompt: Prompt) -> Tensor:
    """[3, 1, L], as transformers counts them."""
    kinds = (prompt.ids == IMAGE_PAD).int()
    found: Tensor = pair.oracle.get_rope_index(prompt.ids, kinds, image_grid_thw=prompt.grids)[0]
    return found


def levels_of(pair: Pair, is_picture: Tensor) -> list[Tensor]:
    """[L, D] of each deep-stack level: features of pictures, zeros of texts."""
    shape = len(is_picture), pair.language.hidden_size
    drawn = (normal(*shape, seed=10 + k) for k in range(pair.vision.num_deepstack))
    return [level * is_picture[:, None] for level in drawn]
