"""What each engine of QwenOFT multiplies and holds; see `models.networks.work`."""

from __future__ import annotations

from models.networks.parts import WHOLE, LayersPerPart
from models.networks.work import Layer, Tokens, Work, mlp_resnet_work, qwen_trunks_work
from models.qwenoft.config import QwenOFTConfig


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
        samples: one, see `models.declared.one_chunk`.
    """
    act = mlp_resnet_work(config.head, config.language.hidden_size, tokens)
    return qwen_trunks_work(config, grid, tokens, layers) | {"act": act}


def folded_layers(config: QwenOFTConfig) -> tuple[Layer, ...]:
    """None."""
    return ()
