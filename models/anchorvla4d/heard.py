"""What the modules of the composition put out in a tick, under the names of our graph.

Axes: N = patches of one view, L = tokens of the prompt, D = width.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from models.anchorvla4d.config import AnchorVLA4DConfig
from models.networks.config import SpatialConfig
from models.networks.heard import Heard, Listener, Sized, placed_qwen
from models.networks.parts import LayersPerPart, cut
from models.networks.spatial import mixes_views
from runtime.graph import part_name

if TYPE_CHECKING:
    from models.anchorvla4d.reference import Composition


def listen(library: Composition) -> dict[str, list[Tensor]]:
    """Hooks that keep what the modules of a tick put out."""
    heard: dict[str, list[Tensor]] = {}
    listener = Listener(heard)
    trunk, head = library.spatial.info_sharing, library.head
    listener.keep_qwen(library.qwen)
    listener.keep("views", trunk.proj_embed)
    for block in trunk.self_attention_blocks:
        listener.keep("spatial", block)
    listener.keep_input("spatial_tokens", library.spatial.final_projection, lambda given: given[0])
    for modulation in (
        *(block.get_submodule("modulation") for block in head.blocks),
        head.final_modulation,
    ):
        listener.keep("modulation", modulation)
    listener.keep_input("x", head, lambda given: given[0][0])
    listener.keep("epsilon", head)
    return heard


def placed(
    heard: Heard,
    config: AnchorVLA4DConfig,
    grid: tuple[int, int],
    layers: LayersPerPart,
    fixed: Mapping[str, int],
) -> dict[str, Tensor]:
    """What was heard under the names of our graph, in its layout, without padded rows."""
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
    sized = Sized(config.vision, config.language, config.views, grid, layers, fixed)
    return found | placed_qwen(heard, sized) | _spatial(heard, config.spatial, sized)


def _spatial(heard: Heard, config: SpatialConfig, sized: Sized) -> dict[str, Tensor]:
    num_patches = sized.grid[0] * sized.grid[1]
    views = heard["views"][0][0]
    names = sized.views
    found = {f"{v}_view": views[n * num_patches :][:num_patches] for n, v in enumerate(names)}
    found["spatial_tokens"] = tokens = heard["spatial_tokens"][0][0]
    num_all = len(names) * num_patches
    final, *taps = tokens.split(num_all)
    found |= {"spatial_final": final} | {f"spatial_tap_{n}": tap for n, tap in enumerate(taps)}
    blocks = cut(config.depth, sized.layers.get("spatial"))
    for i, part in enumerate(blocks[:-1]):
        # Blocks that stay inside a view put out a batch of views, the others one row of all tokens,
        # the scale token last.
        last = heard["spatial"][part.stop - 1]
        found[part_name("spatial_x", i, len(blocks))] = last.flatten(0, 1)[:num_all]
        mixing = [*filter(mixes_views, part)]
        if mixing and any(map(mixes_views, range(part.stop, config.depth))):
            scale = heard["spatial"][mixing[-1]][0, num_all:]
            found[part_name("spatial_scale", i, len(blocks))] = scale
    return found
