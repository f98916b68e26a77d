"""Qwen2.5-VL without its LM head: pictures between texts -> hidden states, in one plain pass."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from models.networks.config import LanguageConfig, VisionConfig
from models.networks.language import LanguageModel
from models.networks.vision import VisionTower
from models.prompt_parts import PromptParts
from runtime import prompt
from runtime.image import ImageConfig, PatchMaker, grid_of


class VisionLanguage(nn.Module):
    """Backbone with the submodule names of Qwen2.5-VL checkpoints."""

    def __init__(self, vision: VisionConfig, language: LanguageConfig) -> None:
        super().__init__()
        self.visual = VisionTower(vision)
        self.model = LanguageModel(language)

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
        pieces: list[Tensor] = []
        segments: list[prompt.Segment] = []
        for text, picture in zip(texts, patches, strict=True):
            pieces += [self.model.embed_tokens(torch.tensor(text)), self.visual(picture, grid)]
            segments += [len(text), (grid[0] // 2, grid[1] // 2)]
        embeddings = torch.cat([*pieces, self.model.embed_tokens(torch.tensor(tail_ids))])
        cos, sin = rotary(self.model.config, [*segments, len(tail_ids)])
        length = embeddings.shape[0]
        mask = torch.from_numpy(prompt.attention_mask(0, 0, length, length))
        _, hidden = self.model(embeddings, self.model.empty_past(0), mask, cos, sin)
        return hidden


def rotary(config: LanguageConfig, segments: list[prompt.Segment]) -> tuple[Tensor, Tensor]:
    """M-RoPE tables of a prompt that starts at position 0."""
    positions, _ = prompt.mrope_positions(segments)
    tables = prompt.mrope_tables(positions, theta=config.rope_theta, sections=config.mrope_section)
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
