"""Engines of the networks that policies share: small modules of fixed shapes, and their ports.

An engine's ports are all that its graph sees. Sizes that depend on the image or the prompt are
fixed when it is made. A trunk in several parts has one engine for each, numbered.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn

from models.networks.parts import (
    AnyDecoder,
    LanguagePart,
    Qwen3VisionPart,
    StatesPart,
    VisionPart,
    cut,
    first_rows,
)
from models.networks.pixels import PixelsEngine
from models.networks.qwen3_vision import Qwen3VisionTower
from models.networks.vision import VisionTower
from runtime.declarations import Tensor
from runtime.graph import part_name
from runtime.image import ImageConfig

COEFFICIENT_ROW = 64
"""Numbers per row of the coefficient table: 256 bytes, the alignment a device wants."""


@dataclass(frozen=True, slots=True)
class EngineSpec:
    """One network to export: a module and its named ports in call order."""

    module: nn.Module
    inputs: Mapping[str, Tensor]
    outputs: Mapping[str, Tensor]
    fixed: tuple[str, ...] = ()
    """Buffers of the module that it multiplies by: float32, whatever a recipe says."""


class VisionEngine(nn.Module):
    def __init__(self, tower: VisionTower, grid: tuple[int, int]) -> None:
        super().__init__()
        self.visual, self.grid = tower, grid

    def forward(self, patches: torch.Tensor) -> torch.Tensor:
        return self.visual(patches, self.grid)


class LanguageEngine(nn.Module):
    def __init__(self, model: AnyDecoder, kept: int | None = None) -> None:
        super().__init__()
        self.model, self.kept = model, kept

    def forward(
        self,
        embeddings: torch.Tensor,
        past: torch.Tensor,
        mask: torch.Tensor,
        cos: torch.Tensor,
        sin: torch.Tensor,
        *deepstack: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        kv, hidden = self.model(embeddings, past, mask, cos, sin, *deepstack)
        return first_rows(kv, self.kept), hidden


def vision_engines(
    tower: VisionTower | Qwen3VisionTower, grid: tuple[int, int], per_part: int | None = None
) -> dict[str, EngineSpec]:
    """Patches of one image -> its merged tokens, and each deep-stack level's as `deepstack_k`."""
    if isinstance(tower, Qwen3VisionTower):
        return _qwen3_vision_engines(tower, grid, per_part)
    c, num_patches = tower.config, grid[0] * grid[1]
    tokens = {"tokens": Tensor(shape=(num_patches // 4, c.out_hidden_size))}
    patches = {"patches": Tensor(shape=(num_patches, c.patch_dim))}
    between = Tensor(shape=(num_patches, c.hidden_size))
    parts = cut(c.depth, per_part)
    if len(parts) == 1:
        return {"vision": EngineSpec(VisionEngine(tower, grid), patches, tokens)}
    return {
        part_name("vision", i, len(parts)): EngineSpec(
            VisionPart(tower, blocks, grid),
            {"x": between} if i else patches,
            tokens if blocks is parts[-1] else {"x_next": between},
        )
        for i, blocks in enumerate(parts)
    }


def _qwen3_vision_engines(
    tower: Qwen3VisionTower, grid: tuple[int, int], per_part: int | None
) -> dict[str, EngineSpec]:
    c, num_patches = tower.config, grid[0] * grid[1]
    patches, between, tokens = (
        Tensor(shape=shape)
        for shape in (
            (num_patches, c.patch_dim),
            (num_patches, c.hidden_size),
            (num_patches // c.spatial_merge_size**2, c.out_hidden_size),
        )
    )
    parts = cut(c.depth, per_part)
    return {
        part_name("vision", i, len(parts)): EngineSpec(
            Qwen3VisionPart(tower, blocks, grid),
            {"x": between} if i else {"patches": patches},
            ({"tokens": tokens} if blocks is parts[-1] else {"x_next": between})
            | {
                f"deepstack_{level}": tokens
                for level, index in enumerate(c.deepstack_visual_indexes)
                if index in blocks
            },
        )
        for i, blocks in enumerate(parts)
    }


def language_engines(
    model: AnyDecoder,
    slots: int,
    per_part: int | None = None,
    calls: int = 2,
    *,
    every_layer: bool = False,
    past: int | None = None,
) -> dict[str, EngineSpec]:
    """`slots` embeddings behind cached tokens -> their keys, values and hidden states; or, if
    `every_layer` is read, `states` of each.

    A prompt that is read in so many `calls` has `slots` cached tokens for each but the last. If
    `past` says how many there are, keys and values are put out of as many first tokens alone.
    What deep-stack level k adds to the hidden states is `deepstack_k`, zeros where text stands; the
    part that holds layer k reads it.
    """
    c = model.config
    rotary = Tensor(shape=(slots, 2 * sum(c.mrope_section)))
    num_past, num_kept = ((calls - 1) * slots, slots) if past is None else (past, past)
    tokens = Tensor(shape=(slots, c.hidden_size))
    parts = cut(c.num_hidden_layers, per_part)
    found = {}
    for i, layers in enumerate(parts):
        row = (len(layers), 2, c.num_key_value_heads, c.head_dim)
        hidden, is_last = {"x_next": tokens}, layers is parts[-1]
        if every_layer:
            module: nn.Module = StatesPart(model, layers)
            states = {"states": Tensor(shape=(len(layers), slots, c.hidden_size))}
            hidden = states if is_last else states | hidden
        else:
            whole = len(parts) == 1
            module = LanguageEngine(model, past) if whole else LanguagePart(model, layers, past)
            hidden = {"hidden": tokens} if is_last else hidden
        found[part_name("language", i, len(parts))] = EngineSpec(
            module,
            {
                "x" if i else "embeddings": tokens,
                "past": Tensor(shape=(num_past, *row)),
                "mask": Tensor(shape=(slots, num_past + slots)),
                "cos": rotary,
                "sin": rotary,
            }
            | {f"deepstack_{k}": tokens for k in range(model.num_deepstack) if k in layers},
            {"kv": Tensor(shape=(num_kept, *row)), **hidden},
        )
    return found


def pixels_engine(image: ImageConfig, size: tuple[int, int], grid: tuple[int, int]) -> EngineSpec:
    """What makes patches of images of one size (height and width) in place of the host.

    Raises:
        ValueError: it would not make the same ones.
    """
    module = PixelsEngine(image, size, grid)
    return EngineSpec(
        module,
        {"image": Tensor(shape=(*size, 3), dtype="uint8")},
        {"patches": Tensor(shape=(grid[0] * grid[1], image.patch_dim))},
        fixed=module.matrices,
    )
