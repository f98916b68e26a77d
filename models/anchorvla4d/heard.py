"""What the modules of the composition put out in a tick, under the names of our graph.

Axes: N = patches of one view, L = tokens of the prompt, D = width.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers.vision_utils import get_vision_window_index

from models.anchorvla4d.config import AnchorVLA4DConfig
from models.networks.parts import LayersPerPart, cut
from models.networks.spatial import NUM_VIEWS, mixes_views
from models.networks.vision import places_of
from runtime.graph import part_name

if TYPE_CHECKING:
    from models.anchorvla4d.reference import Composition

VIEWS = ("anchor", "frame")
Heard = Mapping[str, list[Tensor]]
"""In the order in which the modules ran."""


@dataclass(frozen=True, slots=True)
class Sized:
    """How our side is cut."""

    config: AnchorVLA4DConfig
    grid: tuple[int, int]
    layers: LayersPerPart
    fixed: Mapping[str, int]
    """As `models.split.Split.fixed`."""


def listen(library: Composition) -> defaultdict[str, list[Tensor]]:
    """Hooks that keep what the modules of a tick put out."""
    heard: defaultdict[str, list[Tensor]] = defaultdict(list)

    def keep(name: str, module: nn.Module, of: Callable[[Any], Tensor] = lambda out: out) -> None:
        module.register_forward_hook(lambda _m, _inputs, out: heard[name].append(of(out)))

    qwen, trunk, head = library.qwen, library.spatial.info_sharing, library.head
    for block in qwen.visual.blocks:
        keep("vision", block)
    keep("image_tokens", qwen.visual, lambda out: out.pooler_output)
    for layer in qwen.language_model.layers:
        keep("language", layer)
    keep("hidden", qwen.language_model, lambda out: out.last_hidden_state)
    qwen.register_forward_pre_hook(
        lambda _m, args, named: (args, named | {"use_cache": True}), with_kwargs=True
    )
    keep("kv", qwen, lambda out: _stacked(out.past_key_values))
    keep("views", trunk.proj_embed)
    for block in trunk.self_attention_blocks:
        keep("spatial", block)
    library.spatial.final_projection.register_forward_pre_hook(
        lambda _m, inputs: heard["spatial_tokens"].append(inputs[0])
    )
    for modulation in (
        *(block.get_submodule("modulation") for block in head.blocks),
        head.final_modulation,
    ):
        keep("modulation", modulation)
    head.register_forward_pre_hook(lambda _m, inputs: heard["x"].append(inputs[0][0]))
    keep("epsilon", head)
    return heard


def _stacked(cache: Any) -> Tensor:
    """Keys and values of the libraries' cache as ours has them, [L, layers, 2, K, d]."""
    pairs = [torch.cat([layer.keys, layer.values]) for layer in cache.layers]  # [2, K, L, d]
    return torch.stack(pairs).permute(3, 0, 1, 2, 4)


def placed(heard: Heard, sized: Sized) -> dict[str, Tensor]:
    """What was heard under the names of our graph, in its layout, without padded rows."""
    config = sized.config
    head = config.head
    steps = range(head.num_inference_timesteps)
    per_step = [heard["modulation"][k * (head.depth + 1) :][: head.depth + 1] for k in steps]
    found = {
        "modulations": torch.stack(
            [torch.cat(rows, dim=-1).unflatten(-1, (-1, head.n_emb))[0] for rows in per_step]
        )
    }
    found |= {f"x_{k}": x for k, x in enumerate(heard["x"])}
    found |= {f"predicted_{k}": epsilon[0] for k, epsilon in enumerate(heard["epsilon"])}
    found |= _vision(heard, sized) | _language(heard, sized) | _spatial(heard, sized)
    return found


def _vision(heard: Heard, sized: Sized) -> dict[str, Tensor]:
    vision = sized.config.vision
    rows, columns = sized.grid
    order_M, _ = get_vision_window_index(
        torch.tensor([[1, rows, columns]]),
        spatial_merge_size=vision.spatial_merge_size,
        window_size=vision.window_size,
        patch_size=vision.patch_size,
    )
    back_M = torch.argsort(order_M)
    places = places_of(sized.grid, vision).order
    blocks = cut(vision.depth, sized.layers.get("vision"))
    found: dict[str, Tensor] = {}
    for number, view in enumerate(VIEWS):
        found[f"{view}_tokens"] = heard["image_tokens"][0].chunk(2)[number]
        for i, part in enumerate(blocks[:-1]):
            x_ND = heard["vision"][part.stop - 1].chunk(2)[number]
            in_raster = x_ND.unflatten(0, (len(back_M), -1))[back_M].flatten(0, 1)
            found[part_name(f"{view}_vision_x", i, len(blocks))] = in_raster[places]
    return found


def _language(heard: Heard, sized: Sized) -> dict[str, Tensor]:
    layers = cut(sized.config.language.num_hidden_layers, sized.layers.get("language"))
    prefix = sized.fixed["prefix"]
    calls = {"prefix": slice(0, prefix), "suffix": slice(prefix, None)}
    found: dict[str, Tensor] = {}
    for call, rows in calls.items():
        found[f"{call}_hidden"] = heard["hidden"][0][0, rows]
        for i, part in enumerate(layers):
            kv = heard["kv"][0][rows, part.start : part.stop]
            found[part_name(f"{call}_kv", i, len(layers))] = kv
            if part is not layers[-1]:
                x_SD = heard["language"][part.stop - 1][0, rows]
                found[part_name(f"{call}_x", i, len(layers))] = x_SD
    return found


def _spatial(heard: Heard, sized: Sized) -> dict[str, Tensor]:
    config = sized.config.spatial
    num_patches = sized.grid[0] * sized.grid[1]
    views = heard["views"][0][0]
    found = {f"{v}_view": views[n * num_patches :][:num_patches] for n, v in enumerate(VIEWS)}
    found["spatial_tokens"] = tokens = heard["spatial_tokens"][0][0]
    both = NUM_VIEWS * num_patches
    final, *taps = tokens.split(both)
    found |= {"spatial_final": final} | {f"spatial_tap_{n}": tap for n, tap in enumerate(taps)}
    blocks = cut(config.depth, sized.layers.get("spatial"))
    for i, part in enumerate(blocks[:-1]):
        # Blocks that stay inside a view put out a batch of views, the others one row of all tokens,
        # the scale token last.
        last = part.stop - 1
        mixed = last if mixes_views(last) else last - 1
        found[part_name("spatial_x", i, len(blocks))] = heard["spatial"][last].flatten(0, 1)[:both]
        found[part_name("spatial_scale", i, len(blocks))] = heard["spatial"][mixed][0, both:]
    return found
