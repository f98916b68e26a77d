"""One tick, camera to actions, twice: by our stages as the graph cuts them, and by the libraries.

In: a policy's configuration, its weights by name, and what was observed. Out: every tensor that a
stage of the graph writes, of either side under the graph's names. Both sides are the modules that
are used elsewhere (`models.anchorvla4d.split`, `export.evidence.composition`), streamed: neither
is ever in memory as a whole, and each layer is given what the layer before it put out.

Axes: N = patches of one view, L = tokens of the prompt, D = width.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer
from torch import Tensor, nn
from transformers.vision_utils import get_vision_window_index

from export.evidence.composition import Composition, composed_name
from export.evidence.streamed import Float64, Weights, stream
from export.measure import Modules
from export.tokens import choose_tokens
from models.anchorvla4d.config import PolicyConfig
from models.anchorvla4d.parts import LayersPerPart, cut
from models.anchorvla4d.policy import AnchorVLA4D
from models.anchorvla4d.spatial import NUM_VIEWS, mixes_views
from models.anchorvla4d.split import Split, split
from models.anchorvla4d.vision import places_of
from models.checkpoint import Checkpoint, normalizations
from models.init import image_of, statistics_of
from runtime.graph import part_name
from runtime.image import grid_of

VIEWS = ("anchor", "frame")
Tensors = Mapping[str, NDArray[Any]]
Heard = Mapping[str, list[Tensor]]
"""What the libraries' modules put out in a tick, in the order in which they ran."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Subject:
    """A policy without its weights, and a tick."""

    config: PolicyConfig
    tokenizer: Tokenizer
    image_size: tuple[int, int]
    """Width and height."""
    layers: LayersPerPart

    @property
    def grid(self) -> tuple[int, int]:
        width, height = self.image_size
        return grid_of(height, width, image_of(self.config))

    def checkpoint(self, model: AnchorVLA4D) -> Checkpoint:
        """As if it had been read from a folder."""
        image, statistics = image_of(self.config), statistics_of(self.config)
        return Checkpoint(Path(), self.config, model, self.tokenizer, image, statistics, "")


def on_meta(config: PolicyConfig) -> AnchorVLA4D:
    """A policy of no memory, for its names and shapes."""
    with torch.device("meta"):
        return AnchorVLA4D(config).eval().requires_grad_(False)


@torch.no_grad()
def run_stages(subject: Subject, weights: Weights, golden: Tensors) -> tuple[Split, Tensors]:
    """Our stages in the runtime's interpreter, on what `golden` observed.

    Returns:
        The graph that ran, and its tensors, float32. `epsilon_K` is the noise that step K predicts.
    """
    model = on_meta(subject.config)
    stream(model, weights, {name: name for name in model.state_dict()})
    checkpoint = subject.checkpoint(model)
    slots = choose_tokens(checkpoint, subject.grid, (str(golden["instruction"]),), None).slots
    parts = split(
        model, checkpoint.parts, checkpoint.image, subject.image_size, slots, subject.layers
    )
    epsilons: list[Tensor] = []
    model.action_head.final_layer.register_forward_hook(lambda _m, _i, out: epsilons.append(out))
    tensors = Modules(checkpoint, parts).tensors(golden)
    return parts, tensors | {f"epsilon_{k}": e.numpy() for k, e in enumerate(epsilons)}


@torch.no_grad()
def run_libraries(
    subject: Subject, weights: Weights, golden: Tensors, dtype: torch.dtype = torch.float32
) -> Heard:
    """The composition of libraries, float32 or float64, on what `golden` observed."""
    model = on_meta(subject.config)
    library = Composition(model, subject.tokenizer, image_of(subject.config))
    rotary = library.qwen.language_model.rotary_emb, library.qwen.visual.rotary_pos_emb
    assert all(module.inv_freq.dtype == torch.float32 for module in rotary)
    stream(library, weights, {composed_name(n): n for n in model.state_dict()}, dtype)
    heard = _listen(library)
    checkpoint = subject.checkpoint(model)
    key = str(golden["embodiment"])
    to_policy, _ = normalizations(subject.config, checkpoint.statistics[key], key)
    inputs = library.prepare(
        anchor=golden["anchor"],
        frame=golden["frame"],
        instruction=str(golden["instruction"]),
        state=to_policy.to_policy(golden["state"]),
        noise=golden["noise"],
    )
    with Float64() if dtype == torch.float64 else nullcontext():
        heard["x"].append(library(*inputs))
    return heard


def _listen(library: Composition) -> defaultdict[str, list[Tensor]]:
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


def placed(heard: Heard, subject: Subject, parts: Split) -> Tensors:
    """What was heard under the names of our graph, in its layout, without padded rows."""
    config = subject.config
    head = config.head
    steps = range(head.num_inference_timesteps)
    per_step = [heard["modulation"][k * (head.depth + 1) :][: head.depth + 1] for k in steps]
    found = {
        "modulations": torch.stack(
            [torch.cat(rows, dim=-1).unflatten(-1, (-1, head.n_emb))[0] for rows in per_step]
        )
    }
    found |= {f"x_{k}": x for k, x in enumerate(heard["x"])}
    found |= {f"epsilon_{k}": epsilon[0] for k, epsilon in enumerate(heard["epsilon"])}
    found |= _vision(heard, subject) | _language(heard, subject, parts) | _spatial(heard, subject)
    return {name: tensor.numpy() for name, tensor in found.items()}


def _vision(heard: Heard, subject: Subject) -> dict[str, Tensor]:
    vision = subject.config.vision
    rows, columns = subject.grid
    order_M, _ = get_vision_window_index(
        torch.tensor([[1, rows, columns]]),
        spatial_merge_size=vision.spatial_merge_size,
        window_size=vision.window_size,
        patch_size=vision.patch_size,
    )
    back_M = torch.argsort(order_M)
    places = places_of(subject.grid, vision).order
    blocks = cut(vision.depth, subject.layers.vision)
    found: dict[str, Tensor] = {}
    for number, view in enumerate(VIEWS):
        found[f"{view}_tokens"] = heard["image_tokens"][0].chunk(2)[number]
        for i, part in enumerate(blocks[:-1]):
            x_ND = heard["vision"][part.stop - 1].chunk(2)[number]
            in_raster = x_ND.unflatten(0, (len(back_M), -1))[back_M].flatten(0, 1)
            found[part_name(f"{view}_vision_x", i, len(blocks))] = in_raster[places]
    return found


def _language(heard: Heard, subject: Subject, parts: Split) -> dict[str, Tensor]:
    layers = cut(subject.config.language.num_hidden_layers, subject.layers.language)
    calls = {"prefix": slice(0, parts.num_prefix), "suffix": slice(parts.num_prefix, None)}
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


def _spatial(heard: Heard, subject: Subject) -> dict[str, Tensor]:
    config = subject.config.spatial
    num_patches = subject.grid[0] * subject.grid[1]
    views = heard["views"][0][0]
    found = {f"{v}_view": views[n * num_patches :][:num_patches] for n, v in enumerate(VIEWS)}
    found["spatial_tokens"] = tokens = heard["spatial_tokens"][0][0]
    both = NUM_VIEWS * num_patches
    final, *taps = tokens.split(both)
    found |= {"spatial_final": final} | {f"spatial_tap_{n}": tap for n, tap in enumerate(taps)}
    blocks = cut(config.depth, subject.layers.spatial)
    for i, part in enumerate(blocks[:-1]):
        # Blocks that stay inside a view put out a batch of views, the others one row of all tokens,
        # the scale token last.
        last = part.stop - 1
        mixed = last if mixes_views(last) else last - 1
        found[part_name("spatial_x", i, len(blocks))] = heard["spatial"][last].flatten(0, 1)[:both]
        found[part_name("spatial_scale", i, len(blocks))] = heard["spatial"][mixed][0, both:]
    return found
