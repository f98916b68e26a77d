"""What each engine of VLA-Adapter multiplies and holds; see `models.networks.work`."""

from __future__ import annotations

from functools import partial

from models.networks.parts import WHOLE, LayersPerPart
from models.networks.prismatic_work import prismatic_depths, prismatic_work, tower_work
from models.networks.work import (
    Layer,
    Tokens,
    Work,
    attention_flops,
    language_work,
    layers_of,
    parts_work,
    picking_flops,
)
from models.vlaadapter.config import VLAAdapterConfig

BLOCKS = "action_head.model.mlp_resnet_blocks"


def depths(config: VLAAdapterConfig) -> dict[str, int]:
    """Layers of each trunk that may be cut."""
    return prismatic_depths(config.vision) | {"language": config.language.num_hidden_layers}


def engines_work(
    config: VLAAdapterConfig,
    grid: tuple[int, int],
    tokens: Tokens,
    layers: LayersPerPart = WHOLE,
    samples: int = 1,
) -> dict[str, Work]:
    """Of every engine, under the names and in the order of `engines.engines_of`.

    Args:
        grid: rows and columns of patches, which are the towers' own.
        tokens: of a language call.
        samples: one, see `models.declared.one_chunk`.
    """
    decoder = partial(trunk_work, config, "language", grid=grid, tokens=tokens)
    found = prismatic_work(config.vision, layers)
    found |= parts_work("language", config.language.num_hidden_layers, layers, decoder)
    return found | {"task": _task(config, tokens), "bridge": _bridge(config, tokens)}


def trunk_work(
    config: VLAAdapterConfig, trunk: str, layers: range, grid: tuple[int, int], tokens: Tokens
) -> Work:
    """Some layers of a trunk in an engine of their own."""
    if trunk == "language":
        return language_work("language_model.model", config.language, layers, tokens)
    return tower_work(trunk, config.vision, layers)


def folded_layers(config: VLAAdapterConfig) -> tuple[Layer, ...]:
    """What stands in front of the head's blocks is given zeros."""
    width = config.language.hidden_size
    shapes = {"action_head.model.fc1": (config.head.action_dim * width, width)}
    return layers_of(shapes, 1)


def _task(config: VLAAdapterConfig, tokens: Tokens) -> Work:
    width, depth = config.language.hidden_size, config.language.num_hidden_layers
    shapes = {
        f"{BLOCKS}.{index}.{which}_task": (width, width) for index in range(depth) for which in "kv"
    }
    layers = layers_of(shapes, tokens.new)
    return Work(layers=layers, attention_flops=0, beside=depth, calls=len(config.views))


def _bridge(config: VLAAdapterConfig, tokens: Tokens) -> Work:
    c, width, depth = config.head, config.language.hidden_size, config.language.num_hidden_layers
    own, behind = c.action_horizon, c.num_queries + 1
    proprio = {
        "proprio_projector.fc1": (c.state_dim, width),
        "proprio_projector.fc2": (width, width),
    }
    layers = [*layers_of(proprio, 1)]
    for index in range(depth):
        block = f"{BLOCKS}.{index}"
        for rows, names in (
            (own, ("q_proj", "k_self", "v_self", "o_proj", "ffn.1")),
            (behind, ("k_adapter", "v_adapter")),
        ):
            layers += layers_of({f"{block}.{name}": (width, width) for name in names}, rows)
    layers += layers_of({"action_head.model.fc2": (width, c.action_dim)}, own)
    keys, head_dim = own + behind + config.task_rows, width // c.num_heads
    return Work(
        layers=tuple(layers),
        attention_flops=depth
        * (
            attention_flops(c.num_heads, own, keys, head_dim)
            + picking_flops(c.num_queries, width, tokens)
        ),
        largest_scores=c.num_heads * own * keys,
        beside=2 * width * (depth + 1),
        tables=2 * head_dim * (own + behind),
    )
