"""Qwen2.5-VL or Qwen3-VL without its LM head: pictures between texts -> hidden states, in one plain
pass."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from models.networks.config import (
    AnyDecoderConfig,
    AnyLanguageConfig,
    AnyVisionConfig,
    Qwen3VisionConfig,
    VisionConfig,
)
from models.networks.language import LanguageModel
from models.networks.qwen3_vision import Qwen3VisionTower
from models.networks.vision import VisionTower
from models.prompt_parts import PromptParts
from runtime import prompt
from runtime.image import ImageConfig, PatchMaker, grid_of

TOWERS: Mapping[type[AnyVisionConfig], Any] = {
    VisionConfig: VisionTower,
    Qwen3VisionConfig: Qwen3VisionTower,
}
"""The vision tower of each kind of configuration."""


class VisionLanguage(nn.Module):
    """Backbone with the submodule names of Qwen2.5-VL checkpoints."""

    def __init__(self, vision: AnyVisionConfig, language: AnyLanguageConfig) -> None:
        super().__init__()
        self.visual = TOWERS[type(vision)](vision)
        self.model = LanguageModel(language, vision.num_deepstack)

    def hidden(
        self,
        patches: Sequence[Tensor],
        grid: tuple[int, int],
        parts: PromptParts,
        tail_ids: tuple[int, ...],
    ) -> Tensor:
        """Final hidden states of the whole prompt, [L, D].

        Args:
            patches: [N, patch_dim] of each picture, normalised, in merge-block order.
            grid: rows and columns of patches of each picture.
            parts: fixed tokens of the prompt.
            tail_ids: tokens behind the last picture.
        """
        texts = [parts.before[0], *(parts.image_end + before for before in parts.before[1:])]
        pieces: list[tuple[Tensor, ...]] = []
        segments: list[prompt.Segment] = []
        for text, picture in zip(texts, patches, strict=True):
            pieces += [self._read(text), self._see(picture, grid)]
            segments += [len(text), (grid[0] // 2, grid[1] // 2)]
        pieces.append(self._read(tail_ids))
        embeddings, *deepstack = (torch.cat(rows) for rows in zip(*pieces, strict=True))
        cos, sin = rotary(self.model.config, [*segments, len(tail_ids)])
        length = embeddings.shape[0]
        mask = torch.from_numpy(prompt.attention_mask(0, 0, length, length))
        past = self.model.empty_past(0)
        _, hidden = self.model(embeddings, past, mask, cos, sin, *deepstack)
        return hidden

    def _read(self, ids: Sequence[int]) -> tuple[Tensor, ...]:
        """Embeddings of a text, and what each deep-stack level adds to them: nothing."""
        rows = self.model.embed_tokens(torch.tensor(ids))
        return rows, *([torch.zeros_like(rows)] * self.model.num_deepstack)

    def _see(self, patches: Tensor, grid: tuple[int, int]) -> tuple[Tensor, ...]:
        """Tokens of a picture, and its features of each deep-stack level."""
        seen = self.visual(patches, grid)
        return seen if isinstance(seen, tuple) else (seen,)


def rotary(config: AnyLanguageConfig, segments: list[prompt.Segment]) -> tuple[Tensor, Tensor]:
    """M-RoPE tables of a prompt that starts at position 0."""
    positions, _ = prompt.mrope_positions(segments)
    tables = prompt.mrope_tables(positions, **rotary_settings(config))
    return torch.from_numpy(tables[0]), torch.from_numpy(tables[1])


def patches_of(
    pictures: Sequence[NDArray[np.uint8]], image: ImageConfig
) -> tuple[list[Tensor], tuple[int, int]]:
    """[N, patch_dim] of each picture uint8 [H, W, 3], and the grid that they share."""
    height, width = pictures[0].shape[:2]
    grid = grid_of(height, width, image)
    make, made = PatchMaker(image, grid), []
    for picture in pictures:
        patches = np.empty((grid[0] * grid[1], image.patch_dim), np.float32)
        make(picture, patches)
        made.append(torch.from_numpy(patches))
    return made, grid


def rotary_settings(config: AnyDecoderConfig) -> dict[str, Any]:
    """Settings of `runtime.prompt.mrope_tables`, and of the host function that calls it."""
    settings = {"theta": config.rope_theta, "sections": list(config.mrope_section)}
    return settings | ({"interleaved": True} if config.mrope_interleaved else {})
