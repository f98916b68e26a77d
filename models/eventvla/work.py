"""What each engine of EventVLA multiplies and holds; see `models.networks.work`."""

from __future__ import annotations

from models.eventvla.config import EventVLAConfig
from models.networks.parts import WHOLE, LayersPerPart
from models.networks.work import (
    Layer,
    Tokens,
    Work,
    layers_of,
    mlp_resnet_work,
    picking_flops,
    qwen_trunks_work,
)


def engines_work(
    config: EventVLAConfig,
    grid: tuple[int, int],
    tokens: Tokens,
    layers: LayersPerPart = WHOLE,
    samples: int = 1,
) -> dict[str, Work]:
    """Of every engine, under the names and in the order of `engines.engines_of`.

    Args:
        grid: rows and columns of patches of an image.
        tokens: of a language call.
        samples: one, see `models.declared.one_chunk`.
    """
    found = qwen_trunks_work(config, grid, tokens, layers)
    found["act"] = mlp_resnet_work(config.head, config.language.hidden_size, tokens)
    if config.predicts_keyframes:
        found["events"] = _events(config, tokens)
    return found


def folded_layers(config: EventVLAConfig) -> tuple[Layer, ...]:
    """None."""
    return ()


def _events(config: EventVLAConfig, tokens: Tokens) -> Work:
    width, rows = config.language.hidden_size, config.head.action_horizon
    shapes = {"keyframe_head.1": (width, width), "keyframe_head.3": (width, 1)}
    return Work(
        layers=layers_of(shapes, rows),
        attention_flops=picking_flops(rows, width, tokens),
        beside=2 * width,
    )
