"""Host functions: the stages of a graph that are not engines, by name.

Each entry of `FUNCTIONS` is a factory. It takes the stage's constants and the policy's resources
once, at load, and returns the function that fills the output arrays from the input values.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import prompt
from .errors import ObservationError
from .image import ImageConfig, PatchMaker, similarity
from .normalization import Normalization

Values = Mapping[str, Any]
Arrays = Mapping[str, NDArray[Any]]
HostFunction = Callable[[Values, Arrays], None]


@dataclass(frozen=True, kw_only=True, slots=True)
class Resources:
    """What host functions read besides their inputs."""

    embedding_VD: NDArray[Any]
    """Token embedding rows; bfloat16 is stored as uint16."""
    image: ImageConfig
    grid: tuple[int, int]
    """Patches of the exported image, rows and columns."""
    state: Normalization
    action: Normalization


def patches(params: Values, resources: Resources) -> HostFunction:
    """`image` uint8 [H, W, 3] -> `patches` [N, patch_dim]."""
    make = PatchMaker(resources.image, resources.grid)
    return lambda values, out: make(values["image"], out["patches"])


def embed(params: Values, resources: Resources) -> HostFunction:
    """Constant ids, or `ids` -> `embeddings` [rows, D]; rows behind the ids are zeros."""
    table = resources.embedding_VD

    def run(values: Values, out: Arrays) -> None:
        ids = list(values.get("ids", params.get("ids", ())))
        rows = out["embeddings"]
        if len(ids) > len(rows):
            raise ObservationError(_too_long(len(ids), len(rows)))
        picked = table[ids]
        if picked.dtype == np.uint16:
            picked = (picked.astype(np.uint32) << 16).view(np.float32)
        rows[: len(ids)] = picked
        rows[len(ids) :] = 0

    return run


def rotary(params: Values, resources: Resources) -> HostFunction:
    """Segments, and optionally `ids` behind them -> `cos` and `sin` [S, d]; padding turns by 0."""
    segments = [s if isinstance(s, int) else (s[0], s[1]) for s in params["segments"]]

    def run(values: Values, out: Arrays) -> None:
        tail = [len(values["ids"])] if "ids" in values else []
        positions, _ = prompt.mrope_positions([*segments, *tail], params["start"])
        cos, sin = prompt.mrope_tables(
            positions, theta=params["theta"], sections=params["sections"]
        )
        count = len(cos)
        out["cos"][:count], out["sin"][:count] = cos, sin
        out["cos"][count:], out["sin"][count:] = 1, 0

    return run


def mask(params: Values, resources: Resources) -> HostFunction:
    """Token counts, `ids` adding to the new ones -> `mask` [S, P + S]."""

    def run(values: Values, out: Arrays) -> None:
        count = params["num_new"] + len(values.get("ids", ()))
        slots, columns = out["mask"].shape
        out["mask"][:] = prompt.attention_mask(params["num_past"], columns - slots, count, slots)

    return run


def pooling(params: Values, resources: Resources) -> HostFunction:
    """Token counts, `ids` adding to the suffix -> `weights` [bins, spatial + 2 S]."""

    def run(values: Values, out: Arrays) -> None:
        bins, columns = out["weights"].shape
        num_spatial = params["num_spatial"]
        out["weights"][:] = prompt.pooling_matrix(
            bins,
            num_spatial,
            params["num_prefix"],
            params["num_suffix"] + len(values["ids"]),
            (columns - num_spatial) // 2,
        )

    return run


def constant(params: Values, resources: Resources) -> HostFunction:
    """Numbers -> the leading corner of `value`; the rest stays zero."""
    numbers = np.array(params["values"], np.float32)

    def run(values: Values, out: Arrays) -> None:
        out["value"][...] = 0
        if numbers.size:
            out["value"][tuple(slice(side) for side in numbers.shape)] = numbers

    return run


def copy(params: Values, resources: Resources) -> HostFunction:
    """`value` -> `value`."""

    def run(values: Values, out: Arrays) -> None:
        out["value"][...] = values["value"]

    return run


def normalize_state(params: Values, resources: Resources) -> HostFunction:
    """`state` [S] in robot units -> `state` in policy units."""

    def run(values: Values, out: Arrays) -> None:
        out["state"][...] = resources.state.to_policy(values["state"])

    return run


def unnormalize_actions(params: Values, resources: Resources) -> HostFunction:
    """`actions` [T, A] in policy units -> `actions` in robot units."""

    def run(values: Values, out: Arrays) -> None:
        out["actions"][...] = resources.action.to_robot(values["actions"])

    return run


def cosine(params: Values, resources: Resources) -> HostFunction:
    """Tokens of two images `a`, `b` [N, D] -> `value` [1], the cosine of their means."""

    def run(values: Values, out: Arrays) -> None:
        out["value"][0] = similarity(values["a"], values["b"])

    return run


FUNCTIONS: dict[str, Callable[[Values, Resources], HostFunction]] = {
    f.__name__: f
    for f in (
        patches,
        embed,
        rotary,
        mask,
        pooling,
        constant,
        copy,
        normalize_state,
        unnormalize_actions,
        cosine,
    )
}


def _too_long(got: int, limit: int) -> str:
    return (
        f"the instruction takes {got} tokens, this bundle was exported for at most {limit}: "
        "shorten it, or export again with more --tokens"
    )
