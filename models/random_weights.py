"""Seeded random weights of any policy, drawn when they are read, with outlier channels if wanted.

In: a configuration and a seed. Out: `Weights` that come from no file. Every tensor comes from a
generator keyed by its name and the seed, so the numbers depend on neither torch nor the order of
modules, nor on who asks for which. Products keep their input's scale (1 / sqrt(fan-in)).

The trade-off: random weights cost nothing to get and take the time and memory of real ones, but
say nothing about what a recipe does to a trained model. Planted outlier channels at least make the
methods do their work.

Axes: D = width of the language model.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from models.networks.spatial import reference_view
from models.policy_config import PolicyConfig
from models.sources import Source, Weights, parameter_shapes

OUTLIER_GAIN = (30.0, 60.0)
"""Outlier channels of real language models are some tens of times as large as the others."""
DRAWN = 1 << 24
"""Numbers drawn at once: 64 MB of float32."""


def random_weights(
    config: PolicyConfig,
    seed: int,
    *,
    outlier_channels: int = 0,
    dtype: torch.dtype = torch.float32,
) -> Weights:
    """Of a whole policy.

    Args:
        outlier_channels: as many channels leave each decoder layer's two norms 30 to 60 times as
            large as the others, the same ones in all layers.
        dtype: in which the weights are kept.
    """
    gain_D = outlier_gain(config.language.hidden_size, seed, outlier_channels)
    sources = {}
    for name, shape in parameter_shapes(config).items():
        # The decoder's own: not of queries and keys, which are normalised head by head.
        is_planted = (
            "layernorm" in name
            and shape == gain_D.shape
            and not name.startswith(("action_head.", "vlm.visual."))
        )
        gain = gain_D if outlier_channels and is_planted else None
        read = partial(random_tensor, name, shape, seed, gain=gain, dtype=dtype)
        sources[name] = Source(name, shape, dtype, (), f"drawn from seed {seed}", read)
    return Weights(sources, ())


def random_tensors(model: nn.Module, seed: int) -> Iterator[tuple[str, Tensor]]:
    """Name and seeded random value of every tensor of `model`, in order, in float32."""
    for name, tensor in model.state_dict().items():
        yield name, random_tensor(name, tuple(tensor.shape), seed)


def random_tensor(
    name: str,
    shape: tuple[int, ...],
    seed: int,
    *,
    gain: NDArray[np.float32] | None = None,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """One tensor of a policy. Its numbers are drawn in float32, a part at a time, and then rounded.

    Args:
        gain: factors, float32 of the same shape.
    """
    if name.endswith("view_pos_table"):
        return reference_view(shape[-1]).to(dtype)
    random = np.random.Generator(np.random.Philox(key=zlib.crc32(name.encode()) << 32 | seed))
    made = torch.empty(shape, dtype=dtype)
    rows = max(1, DRAWN // max(1, int(np.prod(shape[1:]))))
    for at in range(0, shape[0], rows):
        part = made[at : at + rows]
        normal = random.standard_normal(tuple(part.shape), np.float32)
        if len(shape) > 1:
            normal /= np.float32(np.sqrt(np.prod(shape[1:])))
        elif "norm" in name and name.endswith("weight") or name.endswith("ln_q.weight"):
            normal = 1 + 0.1 * normal
        else:
            normal *= np.float32(0.1)
        if gain is not None:
            normal *= gain[at : at + rows]
        part.copy_(torch.from_numpy(normal))
    return made


def outlier_gain(width: int, seed: int, count: int) -> NDArray[np.float32]:
    """[D]: 30 to 60 times as much for `count` channels as for the others.

    Their mean square is 1, so that products keep their scale: attention would otherwise choose one
    token and forget the others, and whether it is the same one again would be all that errors say.
    """
    random = np.random.Generator(np.random.Philox(key=seed))
    gain_D = np.ones(width, np.float32)
    gain_D[random.choice(width, count, replace=False)] = random.uniform(*OUTLIER_GAIN, count)
    normalized: NDArray[np.float32] = gain_D / np.sqrt(np.square(gain_D).mean())
    return normalized
