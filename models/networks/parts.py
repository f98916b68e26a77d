"""Trunks of a policy in parts: some layers of one in a row, as a module of its own.

A part is given what the part before it puts out. The first has what stands before the layers, the
last what stands behind them. Layers are those of the policy, under their own numbers, so that a
compiler's messages name the layer of the checkpoint. The trade-off: a compiler fuses nothing across
a border, and every border is a tensor in memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from models.networks import language, phi, qwen3_vision, spatial, vision

AnyDecoder = language.LanguageModel | phi.Phi
"""They are called alike."""

LayersPerPart = Mapping[str, int]
"""Layers that one engine of a trunk holds at most; one that is not named stays in one piece."""
WHOLE: LayersPerPart = {}
"""No trunk is cut."""


def cut(depth: int, per_part: int | None) -> list[range]:
    """Numbers of the layers in each part; the last one has what is left.

    Raises:
        ValueError: fewer than one layer in a part.
    """
    if per_part is not None and per_part < 1:
        raise ValueError(f"layers per part must be at least 1, got {per_part}")
    step = depth if per_part is None else min(per_part, depth)
    return [range(start, min(start + step, depth)) for start in range(0, depth, step)]


class LanguagePart(nn.Module):
    """Some layers of the decoder; the last ones with the final norm."""

    def __init__(self, model: AnyDecoder, layers: range, kept: int | None = None) -> None:
        """
        Args:
            kept: of how many first tokens keys and values are put out; all if it is left out.
        """
        super().__init__()
        self.kept = kept
        self.layers = _numbered(model.layers, layers)
        self.is_last = layers.stop == len(model.layers)
        self.norm = model.norm if self.is_last else nn.Identity()

    def forward(
        self,
        x: Tensor,
        past: Tensor,
        mask: Tensor,
        cos: Tensor,
        sin: Tensor,
        *deepstack: Tensor,
    ) -> tuple[Tensor, ...]:
        """As `LanguageModel.forward`; `x` [..., S, D], `past`, `deepstack` and the result of these
        layers."""
        kv, states = language.run_layers(self.layers.values(), x, past, mask, cos, sin, deepstack)
        return first_rows(kv, self.kept), self.norm(states[-1])


def first_rows(kv: Tensor, count: int | None) -> Tensor:
    """Keys and values [..., S, layers, 2, K, d] of so many tokens."""
    return kv if count is None else kv.narrow(-5, 0, count)


class StatesPart(LanguagePart):
    """The same, whose every layer is read: what all of them put out, and what goes on."""

    def forward(
        self,
        x: Tensor,
        past: Tensor,
        mask: Tensor,
        cos: Tensor,
        sin: Tensor,
        *deepstack: Tensor,
    ) -> tuple[Tensor, ...]:
        """As `LanguagePart.forward`; the states are [..., layers, S, D], the decoder's last one
        behind its norm."""
        kv, states = language.run_layers(self.layers.values(), x, past, mask, cos, sin, deepstack)
        made = language.stacked(states, self.norm)
        return (kv, made) if self.is_last else (kv, made, states[-1])


class VisionPart(nn.Module):
    """Some blocks of the vision tower: the first with the patch embedding, the last with merger."""

    def __init__(self, tower: vision.VisionTower, blocks: range, grid: tuple[int, int]) -> None:
        super().__init__()
        self.config, self.grid = tower.config, grid
        self.patch_embed = tower.patch_embed if blocks.start == 0 else None
        self.blocks = _numbered(tower.blocks, blocks)
        self.merger = tower.merger if blocks.stop == len(tower.blocks) else None

    def forward(self, x: Tensor) -> Tensor:
        """[..., N, patch_dim] in the first part, [..., N, D] in window order in the others."""
        places = vision.places_of(self.grid, self.config)
        if self.patch_embed is not None:
            x = self.patch_embed(x).index_select(-2, places.order)
        x = vision.run_blocks(_by_number(self.blocks), x, places, self.config)
        if self.merger is not None:
            x = self.merger(x).index_select(-2, torch.from_numpy(places.layout.inverse_M))
        return x


class Qwen3VisionPart(nn.Module):
    """Some blocks of Qwen3-VL's vision tower, or all, with the mergers of the levels among them.

    The position embeddings of the one grid are a constant of the first part.
    """

    def __init__(
        self, tower: qwen3_vision.Qwen3VisionTower, blocks: range, grid: tuple[int, int]
    ) -> None:
        super().__init__()
        self.config, self.grid = tower.config, grid
        self.patch_embed = tower.patch_embed if blocks.start == 0 else None
        if blocks.start == 0:
            with torch.no_grad():
                table = tower.pos_embed.weight
                positions = qwen3_vision.grid_positions(table, grid, tower.config)
            self.register_buffer("positions", positions)
            self.positions: Tensor
        self.blocks = _numbered(tower.blocks, blocks)
        self.mergers = nn.ModuleDict(
            {str(index): merger for index, merger in tower.levels().items() if index in blocks}
        )
        self.merger = tower.merger if blocks.stop == len(tower.blocks) else None

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """[..., N, patch_dim] in the first part, [..., N, D] in the others -> tokens in the last,
        [..., N, D] in the others; and the features of these blocks' levels."""
        if self.patch_embed is not None:
            x = self.patch_embed(x) + self.positions
        x, features = qwen3_vision.run_blocks(
            _by_number(self.blocks), x, self.grid, self.config, dict(_by_number(self.mergers))
        )
        return x if self.merger is None else self.merger(x), *features


class SpatialPart(nn.Module):
    """Some blocks of the alternating-attention trunk.

    The first part is given every view and adds the scale token. The others are given the tokens of
    all views, and the scale token where one of their blocks reads it. Every tap leaves the part
    that makes it, behind the final norm, which is a matter of each row alone.
    """

    def __init__(
        self, encoder: spatial.SpatialEncoder, blocks: range, views: Sequence[str]
    ) -> None:
        super().__init__()
        trunk = encoder.info_sharing
        self.num_views = len(views)
        depth = len(trunk.self_attention_blocks)
        self.is_first, self.is_last = blocks.start == 0, blocks.stop == depth
        if self.is_first:
            self.proj_embed = trunk.proj_embed
            self.scale_token = encoder.scale_token
            self.register_buffer("view_pos_table", trunk.view_pos_table)
            self.view_pos_table: Tensor
        self.blocks = _numbered(trunk.self_attention_blocks, blocks)
        self.norm = trunk.norm
        self.indices = trunk.indices
        mixes = any(map(spatial.mixes_views, blocks))
        self.passes_scale = mixes and any(map(spatial.mixes_views, range(blocks.stop, depth)))
        self.inputs = (*views,) if self.is_first else ("x", "scale")[: 1 + mixes]
        """Ports, in call order."""
        names = ["tokens"] if self.is_last else ["x_next", "scale_next"][: 1 + self.passes_scale]
        names += [f"tap_{n}" for n, index in enumerate(trunk.indices) if index in blocks]
        self.outputs = tuple(names)

    def forward(self, *given: Tensor) -> tuple[Tensor, ...]:
        """[..., N, D] of each of V views, or [..., V * N, D] and [..., 1, D]: as `inputs` says."""
        x, scale = given[0], given[-1]  # of the same tensor where no block reads the scale token
        if self.is_first:
            x = torch.cat([x + self.view_pos_table, *given[1:]], dim=-2)
            scale = self.proj_embed(self.scale_token).expand_as(x[..., :1, :])
        num_patches = x.shape[-2] // self.num_views
        x, scale, taps = spatial.run_blocks(
            _by_number(self.blocks), x, scale, num_patches, self.indices
        )
        through = (self.norm(x),) if self.is_last else (x, scale)[: 1 + self.passes_scale]
        return (*through, *map(self.norm, taps))


def _numbered(layers: nn.ModuleList, chosen: range) -> nn.ModuleDict:
    return nn.ModuleDict({str(index): layers[index] for index in chosen})


def _by_number(layers: nn.ModuleDict) -> Iterator[tuple[int, nn.Module]]:
    return ((int(number), layer) for number, layer in layers.items())
