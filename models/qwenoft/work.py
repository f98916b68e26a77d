"""What each engine of QwenOFT multiplies and holds; see `models.networks.work`."""

from __future__ import annotations

from models.networks.parts import WHOLE, LayersPerPart, cut
from models.networks.work import Layer, Tokens, Work, language_work, layers_of, vision_work
from models.qwenoft.config import QwenOFTConfig
from runtime.graph import part_name


def depths(config: QwenOFTConfig) -> dict[str, int]:
    """Layers of each trunk that may be cut."""
    return {"vision": config.vision.depth, "language": config.language.num_hidden_layers}


def engines_work(
    config: QwenOFTConfig,
    grid: tuple[int, int],
    tokens: Tokens,
    layers: LayersPerPart = WHOLE,
    samples: int = 1,
) -> dict[str, Work]:
    """Of every engine, under the names and in the order of `engines.engines_of`.

    Args:
        grid: rows and columns of patches of an image.
        tokens: of a language call.
        samples: one, see `models.split.one_chunk`.
    """
    found: dict[str, Work] = {}
    for trunk, depth in depths(config).items():
        parts = cut(depth, layers.get(trunk))
        for i, part in enumerate(parts):
            found[part_name(trunk, i, len(parts))] = trunk_work(config, trunk, part, grid, tokens)
    return found | {"act": _act(config, tokens)}


def trunk_work(
    config: QwenOFTConfig, trunk: str, layers: range, grid: tuple[int, int], tokens: Tokens
) -> Work:
    """Some layers of a trunk in an engine of their own, with what stands before and behind them."""
    if trunk == "vision":
        return vision_work("vlm.visual", config.vision, layers, grid)
    return language_work("vlm.model", config.language, layers, tokens)


def folded_layers(config: QwenOFTConfig) -> tuple[Layer, ...]:
    """None."""
    return ()


def _act(config: QwenOFTConfig, tokens: Tokens) -> Work:
    c, context = config.head, config.language.hidden_size
    width = c.hidden_size(context)
    name = "action_head.model"
    shapes = {f"{name}.fc1": (context, width)}
    shapes |= {f"{name}.mlp_resnet_blocks.{i}.ffn.1": (width, width) for i in range(c.num_blocks)}
    shapes[f"{name}.fc2"] = (width, c.action_dim)
    return Work(
        layers=layers_of(shapes, c.action_horizon),
        attention_flops=2 * c.action_horizon * tokens.new * context,
        beside=2 * context + 2 * width * (c.num_blocks + 1),
    )
