"""What the modules of transformers' Qwen2.5-VL put out in a tick, under the names of our graphs.

Axes: N = patches of one view, L = tokens of the prompt, D = width.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers.vision_utils import get_vision_window_index

from models.networks.config import AnyLanguageConfig, AnyVisionConfig, VisionConfig
from models.networks.parts import LayersPerPart, cut
from models.networks.vision import places_of
from runtime.graph import part_name

Heard = Mapping[str, list[Tensor]]
"""In the order in which the modules ran."""


class Listener:
    """Hooks that keep what modules put out.

    Args:
        heard: what they are kept in.
    """

    def __init__(self, heard: dict[str, list[Tensor]]) -> None:
        self.heard = heard

    def keep(
        self, name: str, module: nn.Module, of: Callable[[Any], Tensor] = lambda out: out
    ) -> None:
        """What it puts out, or a part `of` that."""
        module.register_forward_hook(lambda _m, _in, out: self._add(name, of(out)))

    def keep_input(self, name: str, module: nn.Module, of: Callable[[Any], Tensor]) -> None:
        """Of the inputs that it is given."""
        module.register_forward_pre_hook(lambda _m, inputs: self._add(name, of(inputs)))

    def keep_qwen(self, qwen: Any) -> None:
        """Of every block, between the layers, and the keys and values of all."""
        for block in qwen.visual.blocks:
            self.keep("vision", block)
        self.keep("image_tokens", qwen.visual, lambda out: out.pooler_output)
        for level, merger in enumerate(getattr(qwen.visual, "deepstack_merger_list", ())):
            self.keep(f"deepstack_{level}", merger)
        for layer in qwen.language_model.layers[1:]:  # what comes in has all that is added between
            self.keep_input("language", layer, lambda given: given[0])
        self.keep("hidden", qwen.language_model, lambda out: out.last_hidden_state)
        qwen.register_forward_pre_hook(
            lambda _m, args, named: (args, named | {"use_cache": True}), with_kwargs=True
        )
        self.keep("kv", qwen, lambda out: stacked(out.past_key_values))

    def _add(self, name: str, value: Tensor) -> None:
        self.heard.setdefault(name, []).append(value)


@dataclass(frozen=True, slots=True)
class Sized:
    """How our side is cut."""

    vision: AnyVisionConfig
    language: AnyLanguageConfig
    views: Sequence[str]
    """Names of the pictures, in the order of the prompt."""
    grid: tuple[int, int]
    layers: LayersPerPart
    fixed: Mapping[str, int]
    """As `models.split.Split.fixed`."""


def stacked(cache: Any) -> Tensor:
    """Keys and values of the library's cache as ours has them, [L, layers, 2, K, d]."""
    pairs = [torch.cat([layer.keys, layer.values]) for layer in cache.layers]  # [2, K, L, d]
    return torch.stack(pairs).permute(3, 0, 1, 2, 4)


def placed_qwen(heard: Heard, sized: Sized) -> dict[str, Tensor]:
    """What was heard of the tower and of the decoder, in our layout, without padded rows."""
    return _vision(heard, sized) | _language(heard, sized)


def _vision(heard: Heard, sized: Sized) -> dict[str, Tensor]:
    vision = sized.vision
    blocks = cut(vision.depth, sized.layers.get("vision"))
    count = len(sized.views)
    found: dict[str, Tensor] = {}
    for number, view in enumerate(sized.views):
        found[f"{view}_tokens"] = heard["image_tokens"][0].chunk(count)[number]
        for level in range(vision.num_deepstack):
            port = f"deepstack_{level}"
            found[f"{view}_{port}"] = heard[port][0].chunk(count)[number]
        for i, part in enumerate(blocks[:-1]):
            x_ND = heard["vision"][part.stop - 1].chunk(count)[number]
            if isinstance(vision, VisionConfig):
                x_ND = _in_our_windows(x_ND, sized.grid, vision)
            found[part_name(f"{view}_vision_x", i, len(blocks))] = x_ND
    return found


def _in_our_windows(x_ND: Tensor, grid: tuple[int, int], vision: VisionConfig) -> Tensor:
    """Rows in the order of the library's windows -> in that of ours."""
    order_M, _ = get_vision_window_index(
        torch.tensor([[1, *grid]]),
        spatial_merge_size=vision.spatial_merge_size,
        window_size=vision.window_size,
        patch_size=vision.patch_size,
    )
    back_M = torch.argsort(order_M)
    in_raster = x_ND.unflatten(0, (len(back_M), -1))[back_M].flatten(0, 1)
    return in_raster[places_of(grid, vision).order]


def _language(heard: Heard, sized: Sized) -> dict[str, Tensor]:
    layers = cut(sized.language.num_hidden_layers, sized.layers.get("language"))
    starts = [0, *itertools.accumulate(list(sized.fixed.values())[:-1])]
    found: dict[str, Tensor] = {}
    for call, start, stop in zip(sized.fixed, starts, [*starts[1:], None], strict=True):
        rows = slice(start, stop)  # the last call has the tail too
        found[f"{call}_hidden"] = heard["hidden"][0][0, rows]
        for i, part in enumerate(layers):
            kv = heard["kv"][0][rows, part.start : part.stop]
            found[part_name(f"{call}_kv", i, len(layers))] = kv
            if part is not layers[-1]:
                x_SD = heard["language"][part.stop - 1][0, rows]
                found[part_name(f"{call}_x", i, len(layers))] = x_SD
    return found
