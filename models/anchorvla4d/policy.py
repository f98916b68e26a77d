"""AnchorVLA4D: Qwen2.5-VL sees anchor and frame, a spatial encoder relates them, ScaleDP acts.

`forward` is the float32 reference: the whole policy in one plain pass, with no cache, no split and
no trick. Everything that this project exports is measured against it. The submodule names are
those of the published checkpoint's parts: `vlm`, `info_sharing`, `action_head`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn import functional

from models.anchorvla4d.config import LanguageConfig, PolicyConfig, PromptConfig
from models.anchorvla4d.head import ScaleDP, ddim_coefficients, ddim_step, inference_timesteps
from models.anchorvla4d.language import LanguageModel
from models.anchorvla4d.spatial import SpatialEncoder
from models.anchorvla4d.vision import VisionTower
from runtime import prompt


@dataclass(frozen=True, slots=True)
class PromptParts:
    """The fixed tokens around the images, and the text behind the frame."""

    head: tuple[int, ...]
    """Everything before the anchor image."""
    anchor_end: tuple[int, ...]
    """What closes the anchor image; the cacheable prefix ends here."""
    middle: tuple[int, ...]
    """Between the anchor's end and the frame image."""
    tail: str
    """Text behind the frame image, with `{instruction}`."""
    end_ids: tuple[int, ...]
    """Ids behind the tail."""

    @classmethod
    def of(cls, config: PromptConfig, tokenizer: Tokenizer) -> PromptParts:
        before, rest = config.template.split("{anchor}")
        between, after = rest.split("{frame}")

        def ids(text: str) -> tuple[int, ...]:
            return tuple(tokenizer.encode(text, add_special_tokens=False).ids)

        return cls(
            head=ids(before + config.image_start),
            anchor_end=ids(config.image_end),
            middle=ids(between + config.image_start),
            tail=config.image_end + after,
            end_ids=(config.placeholder_token_id, *ids(config.end)),
        )


class VisionLanguage(nn.Module):
    """Backbone with the submodule names of Qwen2.5-VL checkpoints."""

    def __init__(self, config: PolicyConfig) -> None:
        super().__init__()
        self.visual = VisionTower(config.vision)
        self.model = LanguageModel(config.language)


class AnchorVLA4D(nn.Module):
    def __init__(self, config: PolicyConfig) -> None:
        super().__init__()
        self.config = config
        self.vlm = VisionLanguage(config)
        self.info_sharing = SpatialEncoder(
            config.spatial, config.vision.patch_dim, config.language.hidden_size
        )
        self.action_head = ScaleDP(config.head, config.language.hidden_size)

    def forward(
        self,
        anchor_patches: Tensor,
        frame_patches: Tensor,
        grid: tuple[int, int],
        parts: PromptParts,
        tail_ids: tuple[int, ...],
        state: Tensor,
        noise_TA: Tensor,
        leftover_TA: Tensor | None = None,
        weights_T1: Tensor | None = None,
    ) -> Tensor:
        """One observation -> one action chunk, in policy units.

        Args:
            anchor_patches: [N, patch_dim], normalised, merge-block order.
            frame_patches: [N, patch_dim].
            grid: rows and columns of patches of both images.
            parts: fixed tokens of the prompt.
            tail_ids: tokens behind the frame image.
            state: [S] in policy units.
            noise_TA: [T, A] standard normal.
            leftover_TA: [T, A] what is left of the last chunk, in policy units; zeros by default.
            weights_T1: [T, 1] how much of it counts, see `head.ddim_step`.

        Returns:
            [T, A] in policy units.
        """
        hidden_LD = self.language(anchor_patches, frame_patches, grid, parts, tail_ids)
        spatial_ND = self.info_sharing(anchor_patches, frame_patches)
        fused = torch.cat([spatial_ND, hidden_LD], dim=-2)
        bins = self.config.head.adaptive_pool_dim
        pooled_BD = functional.adaptive_avg_pool1d(fused.T[None], bins)[0].T
        condition = self.action_head.condition(pooled_BD, state)
        x_TA = noise_TA
        leftover_TA = torch.zeros_like(x_TA) if leftover_TA is None else leftover_TA
        weights_T1 = torch.zeros_like(x_TA[..., :1]) if weights_T1 is None else weights_T1
        coefficients = ddim_coefficients(self.config.head)
        for k, t in enumerate(inference_timesteps(self.config.head)):
            epsilon = self.action_head.epsilon(x_TA, torch.tensor(t), condition)
            x_TA = ddim_step(x_TA, epsilon, coefficients[k], leftover_TA, weights_T1)
        return x_TA

    def language(
        self,
        anchor_patches: Tensor,
        frame_patches: Tensor,
        grid: tuple[int, int],
        parts: PromptParts,
        tail_ids: tuple[int, ...],
    ) -> Tensor:
        """Final hidden states of the whole prompt, [L, D]."""
        table = self.vlm.model.embed_tokens
        embeddings = torch.cat(
            [
                table(torch.tensor(parts.head)),
                self.vlm.visual(anchor_patches, grid),
                table(torch.tensor(parts.anchor_end + parts.middle)),
                self.vlm.visual(frame_patches, grid),
                table(torch.tensor(tail_ids)),
            ]
        )
        image = (grid[0] // 2, grid[1] // 2)
        between = len(parts.anchor_end) + len(parts.middle)
        cos, sin = rotary(
            self.config.language, [len(parts.head), image, between, image, len(tail_ids)]
        )
        length = embeddings.shape[0]
        mask = torch.from_numpy(prompt.attention_mask(0, 0, length, length))
        _, hidden = self.vlm.model(embeddings, self.empty_past(0), mask, cos, sin)
        return hidden

    def empty_past(self, slots: int) -> Tensor:
        """Zeros in the layout of the language engine's cache, [P, layers, 2, K, d]."""
        c = self.config.language
        return torch.zeros(slots, c.num_hidden_layers, 2, c.num_key_value_heads, c.head_dim)


def rotary(config: LanguageConfig, segments: list[prompt.Segment]) -> tuple[Tensor, Tensor]:
    """M-RoPE tables of a prompt that starts at position 0."""
    positions, _ = prompt.mrope_positions(segments)
    tables = prompt.mrope_tables(positions, theta=config.rope_theta, sections=config.mrope_section)
    return torch.from_numpy(tables[0]), torch.from_numpy(tables[1])
