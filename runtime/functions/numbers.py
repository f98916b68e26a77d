"""Host functions on numbers: constants, scaling, and which actions are carried out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from msgspec import Struct

from ..image import similarity
from ..normalization import Scaling, medoid, scaling
from .function import (
    Arrays,
    Function,
    HostFunction,
    Nothing,
    Ports,
    Resources,
    Values,
    misfit,
)


class Constant(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Numbers of the leading corner."""

    values: list[Any]


def _constant(params: Constant, resources: Resources) -> HostFunction:
    numbers = np.array(params.values, np.float32)

    def run(values: Values, out: Arrays) -> None:
        out["value"][...] = 0
        if numbers.size:
            out["value"][tuple(slice(side) for side in numbers.shape)] = numbers

    return run


def _check_constant(params: Constant, ports: Ports) -> str:
    try:
        shape = np.array(params.values, np.float32).shape
    except (ValueError, TypeError) as error:
        return f"its values are no array of numbers ({error})"
    into = ports["value"].shape
    fits = len(shape) == len(into) and all(a <= b for a, b in zip(shape, into, strict=True))
    return "" if fits or not params.values else f"values {list(shape)} do not fit {list(into)}"


def _copy(params: Nothing, resources: Resources) -> HostFunction:
    def run(values: Values, out: Arrays) -> None:
        out["value"][...] = values["value"]

    return run


def _corner(params: Nothing, resources: Resources) -> HostFunction:
    def run(values: Values, out: Arrays) -> None:
        source, target = values["of"], out["value"]
        both = tuple(slice(min(pair)) for pair in zip(source.shape, target.shape, strict=True))
        target[...] = 0
        target[both] = source[both]

    return run


def _check_corner(params: Nothing, ports: Ports) -> str:
    source, target = ports["of"].shape, ports["value"].shape
    return "" if len(source) == len(target) else misfit("value", ports, source)


def _normalize(params: Scaling, resources: Resources) -> HostFunction:
    mapping = scaling(params, resources.statistics)

    def run(values: Values, out: Arrays) -> None:
        out["value"][...] = mapping.to_policy(values["value"])

    return run


def _unnormalize(params: Scaling, resources: Resources) -> HostFunction:
    mapping = scaling(params, resources.statistics)

    def run(values: Values, out: Arrays) -> None:
        out["value"][...] = mapping.to_robot(values["value"])

    return run


def _leftover(params: Scaling, resources: Resources) -> HostFunction:
    mapping = scaling(params, resources.statistics)

    def run(values: Values, out: Arrays) -> None:
        leftover = values["leftover"]
        out["actions"][...] = mapping.to_policy(leftover[:, 1:])
        out["weights"][...] = leftover[:, :1]

    return run


def _check_leftover(params: Scaling, ports: Ports) -> str:
    count, width = ports["leftover"].shape
    return (
        misfit("actions", ports, (count, width - 1))
        or misfit("weights", ports, (count, 1))
        or _check_scaling(params, {"value": ports["actions"]})
    )


def _medoid(params: Scaling, resources: Resources) -> HostFunction:
    mapping = scaling(params, resources.statistics)

    def run(values: Values, out: Arrays) -> None:
        out["actions"][...], out["spread"][0] = medoid(values["samples"], mapping)

    return run


def _check_medoid(params: Scaling, ports: Ports) -> str:
    shape = ports["samples"].shape
    if len(shape) != 3 or shape[0] < 2:
        return f"chooses from {list(shape)}, [K, T, A] is wanted, with K of 2 or more"
    return (
        misfit("actions", ports, shape[1:])
        or misfit("spread", ports, (1,))
        or _check_scaling(params, {"value": ports["actions"]})
    )


def _commit(params: Nothing, resources: Resources) -> HostFunction:
    def run(values: Values, out: Arrays) -> None:
        leftover = values["leftover"]
        out["actions"][...] = np.where(leftover[:, :1] == 1, leftover[:, 1:], values["denoised"])

    return run


def _check_commit(params: Nothing, ports: Ports) -> str:
    wanted = ports["leftover"].shape[0], ports["leftover"].shape[1] - 1
    return misfit("denoised", ports, wanted) or misfit("actions", ports, wanted)


def _check_scaling(params: Scaling, ports: Ports) -> str:
    width = ports["value"].shape[-1]
    if not len(params.modes) == len(params.units) == width:
        return f"{len(params.modes)} modes and {len(params.units)} units for {width} numbers"
    return ""


def _cosine(params: Nothing, resources: Resources) -> HostFunction:
    def run(values: Values, out: Arrays) -> None:
        out["value"][0] = similarity(values["a"], values["b"])

    return run


def _check_cosine(params: Nothing, ports: Ports) -> str:
    a, b = ports["a"].shape, ports["b"].shape
    if len(a) != 2 or len(b) != 2 or a[1] != b[1]:
        return f"compares {list(a)} with {list(b)}, tokens [N, D] of one width are wanted"
    return misfit("value", ports, (1,))


NUMBERS = ("tensor", "vector", "noise", "depth", "video", "image")
FUNCTIONS: Mapping[str, Function] = {
    "constant": Function(
        params=Constant, make=_constant, check=_check_constant, inputs={}, outputs=("value",),
    ),
    "copy": Function(
        params=Nothing, make=_copy, inputs={"value": NUMBERS}, outputs=("value",),
        same_shape=True, same_dtype=True,
    ),
    "corner": Function(
        params=Nothing, make=_corner, check=_check_corner, inputs={"of": ("tensor",)},
        outputs=("value",),
    ),
    "normalize": Function(
        params=Scaling, make=_normalize, check=_check_scaling,
        inputs={"value": ("vector", "tensor")}, outputs=("value",), same_shape=True,
    ),
    "unnormalize": Function(
        params=Scaling, make=_unnormalize, check=_check_scaling,
        inputs={"value": ("tensor",)}, outputs=("value",), same_shape=True,
    ),
    "leftover": Function(
        params=Scaling, make=_leftover, check=_check_leftover,
        inputs={"leftover": ("leftover",)}, outputs=("actions", "weights"),
    ),
    "medoid": Function(
        params=Scaling, make=_medoid, check=_check_medoid,
        inputs={"samples": ("tensor",)}, outputs=("actions", "spread"),
    ),
    "commit": Function(
        params=Nothing, make=_commit, check=_check_commit,
        inputs={"denoised": ("tensor",), "leftover": ("leftover",)}, outputs=("actions",),
    ),
    "cosine": Function(
        params=Nothing, make=_cosine, check=_check_cosine,
        inputs={"a": ("tensor",), "b": ("tensor",)}, outputs=("value",),
    ),
}  # fmt: skip
