"""Host functions: the stages of a graph that are not engines, by name.

Each is declared like an engine: ports, constants, and what must hold between them, so that a graph
that it cannot serve is refused before anything is loaded. `make` is called once, at load, and
returns the function that fills the output arrays from the input values.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from . import prompt
from .declarations import Input, Tensor
from .errors import BundleError
from .graph import Graph, Stage
from .image import ImageConfig, PatchMaker, similarity
from .normalization import Scaling, scaling
from .prompt import Segment

Values = Mapping[str, Any]
Arrays = Mapping[str, NDArray[Any]]
HostFunction = Callable[[Values, Arrays], None]
Ports = Mapping[str, Input | Tensor]
"""What is bound to a stage's ports, inputs and outputs together."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Resources:
    """What host functions read besides their inputs and their constants."""

    tables: Mapping[str, NDArray[Any]]
    """[V, D] by name; bfloat16 is stored as uint16."""
    statistics: Mapping[str, Mapping[str, Any]]
    """Of the embodiment, by the name that a stage knows them by."""


class Nothing(Struct, frozen=True, forbid_unknown_fields=True):
    """No constants."""


class Patches(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How an image becomes patches."""

    grid: tuple[int, int]
    """Patches of the exported image, rows and columns."""
    image: ImageConfig


class Embed(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Rows of a table."""

    table: str
    ids: tuple[int, ...] = ()
    """Constant, where no text gives them."""


class Rotary(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Segments of a prompt, and the position of the first."""

    segments: tuple[int | tuple[int, int], ...]
    start: int
    theta: float
    sections: tuple[int, ...]


class Mask(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Tokens of a call, a text's not counted."""

    num_past: int
    num_new: int


class Pooling(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Tokens that are pooled, a text's not counted."""

    num_spatial: int
    num_prefix: int
    num_suffix: int


class Constant(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Numbers of the leading corner."""

    values: list[Any]


def _patches(params: Patches, resources: Resources) -> HostFunction:
    make = PatchMaker(params.image, params.grid)

    def run(values: Values, out: Arrays) -> None:
        images, rows = values["image"], out["patches"]
        if images.ndim == 3:
            make(images, rows)
            return
        for image, part in zip(images, np.split(rows, len(images)), strict=True):
            make(image, part)

    return run


def _check_patches(params: Patches, ports: Ports) -> str:
    c, (rows, columns) = params.image, params.grid
    count = rows * columns * (ports["image"].shape[0] if len(ports["image"].shape) == 4 else 1)
    if rows % c.merge_size or columns % c.merge_size or min(rows, columns) < 1:
        return f"a grid of {rows}x{columns} patches does not merge by {c.merge_size}"
    return _shape("patches", ports, (count, c.patch_dim))


def _embed(params: Embed, resources: Resources) -> HostFunction:
    table = resources.tables[params.table]
    if params.ids and not 0 <= min(params.ids) <= max(params.ids) < len(table):
        raise ValueError(f"ids {params.ids} lie outside of table {params.table!r} [{len(table)}]")

    def run(values: Values, out: Arrays) -> None:
        ids = list(values.get("ids", params.ids))
        rows = out["embeddings"]
        picked = table[ids]
        if picked.dtype == np.uint16:
            picked = (picked.astype(np.uint32) << 16).view(np.float32)
        rows[: len(ids)] = picked
        rows[len(ids) :] = 0

    return run


def _check_embed(params: Embed, ports: Ports) -> str:
    rows = ports["embeddings"].shape
    count = _text(ports) or len(params.ids)
    if "ids" in ports and params.ids:
        return "constant ids beside a text"
    return "" if len(rows) == 2 and count <= rows[0] else _too_many(count, "embeddings", rows)


def _rotary(params: Rotary, resources: Resources) -> HostFunction:
    segments: list[Segment] = list(params.segments)

    def run(values: Values, out: Arrays) -> None:
        tail = [len(values["ids"])] if "ids" in values else []
        positions, _ = prompt.mrope_positions([*segments, *tail], params.start)
        cos, sin = prompt.mrope_tables(positions, theta=params.theta, sections=params.sections)
        count = len(cos)
        out["cos"][:count], out["sin"][:count] = cos, sin
        out["cos"][count:], out["sin"][count:] = 1, 0

    return run


def _check_rotary(params: Rotary, ports: Ports) -> str:
    rows, count = ports["cos"].shape, prompt.num_tokens(params.segments) + _text(ports)
    width = 2 * sum(params.sections)
    if len(rows) != 2 or count > rows[0]:
        return _too_many(count, "cos", rows)
    return _shape("cos", ports, (rows[0], width)) or _shape("sin", ports, (rows[0], width))


def _mask(params: Mask, resources: Resources) -> HostFunction:
    def run(values: Values, out: Arrays) -> None:
        count = params.num_new + len(values.get("ids", ()))
        slots, columns = out["mask"].shape
        out["mask"][:] = prompt.attention_mask(params.num_past, columns - slots, count, slots)

    return run


def _check_mask(params: Mask, ports: Ports) -> str:
    rows, count = ports["mask"].shape, params.num_new + _text(ports)
    fits = len(rows) == 2 and count <= rows[0] and params.num_past <= rows[1] - rows[0]
    return "" if fits else _too_many(count, "mask", rows)


def _pooling(params: Pooling, resources: Resources) -> HostFunction:
    def run(values: Values, out: Arrays) -> None:
        bins, columns = out["weights"].shape
        num_spatial, num_suffix = params.num_spatial, params.num_suffix + len(values["ids"])
        out["weights"][:] = prompt.pooling_matrix(
            bins, num_spatial, params.num_prefix, num_suffix, (columns - num_spatial) // 2
        )

    return run


def _check_pooling(params: Pooling, ports: Ports) -> str:
    shape, count = ports["weights"].shape, params.num_suffix + _text(ports)
    slots = (shape[-1] - params.num_spatial) // 2
    fits = len(shape) == 2 and max(count, params.num_prefix) <= slots
    return "" if fits else _too_many(max(count, params.num_prefix), "weights", shape)


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
        _shape("actions", ports, (count, width - 1))
        or _shape("weights", ports, (count, 1))
        or _check_scaling(params, {"value": ports["actions"]})
    )


def _commit(params: Nothing, resources: Resources) -> HostFunction:
    def run(values: Values, out: Arrays) -> None:
        leftover = values["leftover"]
        out["actions"][...] = np.where(leftover[:, :1] == 1, leftover[:, 1:], values["denoised"])

    return run


def _check_commit(params: Nothing, ports: Ports) -> str:
    wanted = ports["leftover"].shape[0], ports["leftover"].shape[1] - 1
    return _shape("denoised", ports, wanted) or _shape("actions", ports, wanted)


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
    return _shape("value", ports, (1,))


@dataclass(frozen=True, kw_only=True, slots=True)
class Function:
    """A host function: what it reads and writes, and how it is made."""

    params: type[Any]
    make: Callable[[Any, Resources], HostFunction]
    inputs: Mapping[str, tuple[str, ...]]
    """Per port: kinds of inputs that may be bound to it, and `tensor` where a tensor may."""
    outputs: tuple[str, ...]
    optional: tuple[str, ...] = ()
    """Inputs that may be left out."""
    check: Callable[[Any, Ports], str] = lambda params, ports: ""
    """What does not fit, in words; empty if all does."""
    same_shape: bool = False
    """Whether the output has the input's shape."""
    same_dtype: bool = False
    """Whether the output may also have the input's type, where that is no float."""


NUMBERS = ("tensor", "vector", "noise", "depth", "video", "image")
_IDS = {"ids": ("text",)}
FUNCTIONS: Mapping[str, Function] = {
    "patches": Function(
        params=Patches, make=_patches, check=_check_patches,
        inputs={"image": ("image", "video")}, outputs=("patches",),
    ),
    "embed": Function(
        params=Embed, make=_embed, check=_check_embed,
        inputs=_IDS, optional=("ids",), outputs=("embeddings",),
    ),
    "rotary": Function(
        params=Rotary, make=_rotary, check=_check_rotary,
        inputs=_IDS, optional=("ids",), outputs=("cos", "sin"),
    ),
    "mask": Function(
        params=Mask, make=_mask, check=_check_mask,
        inputs=_IDS, optional=("ids",), outputs=("mask",),
    ),
    "pooling": Function(
        params=Pooling, make=_pooling, check=_check_pooling, inputs=_IDS, outputs=("weights",),
    ),
    "constant": Function(
        params=Constant, make=_constant, check=_check_constant, inputs={}, outputs=("value",),
    ),
    "copy": Function(
        params=Nothing, make=_copy, inputs={"value": NUMBERS}, outputs=("value",),
        same_shape=True, same_dtype=True,
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
    "commit": Function(
        params=Nothing, make=_commit, check=_check_commit,
        inputs={"denoised": ("tensor",), "leftover": ("leftover",)}, outputs=("actions",),
    ),
    "cosine": Function(
        params=Nothing, make=_cosine, check=_check_cosine,
        inputs={"a": ("tensor",), "b": ("tensor",)}, outputs=("value",),
    ),
}  # fmt: skip


def check_call(stage: Stage, graph: Graph) -> None:
    """Refuse a call of a host function that could not run.

    Raises:
        BundleError: says what does not fit.
    """
    function = FUNCTIONS.get(stage.function or "")
    where = f"stage {stage.name!r}, host function {stage.function!r}"
    if function is None:
        raise BundleError(
            f"stage {stage.name!r} needs the host function {stage.function!r}, which this runtime "
            f"lacks; it has {sorted(FUNCTIONS)}. Install a newer runtime"
        )
    needed = function.inputs.keys() - set(function.optional)
    if not needed <= stage.inputs.keys() <= function.inputs.keys():
        raise BundleError(f"{where}: reads {sorted(stage.inputs)}, not {sorted(function.inputs)}")
    if stage.outputs.keys() != set(function.outputs):
        got = sorted(stage.outputs)
        raise BundleError(f"{where}: writes {got}, not {sorted(function.outputs)}")
    for port, name in stage.inputs.items():
        kind = graph.inputs[name].kind if name in graph.inputs else "tensor"
        if kind == "tensor" and graph.tensors[name].dtype == "bfloat16":
            raise BundleError(f"{where}: reads {name!r}, which is bfloat16; numpy has none")
        if kind not in function.inputs[port]:
            wanted = " or ".join(function.inputs[port])
            raise BundleError(f"{where}: port {port!r} takes {wanted}, {name!r} is a {kind}")
    ports: dict[str, Input | Tensor] = {
        port: graph.inputs[name] if name in graph.inputs else graph.tensors[name]
        for port, name in (*stage.inputs.items(), *stage.outputs.items())
    }
    read = (graph.inputs.get(name) or graph.tensors[name] for name in stage.inputs.values())
    kept = {source.dtype for source in read} if function.same_dtype else set()
    for port, name in stage.outputs.items():
        if not ports[port].dtype.startswith("float") and ports[port].dtype not in kept:
            raise BundleError(
                f"{where}: writes {name!r}, which is {ports[port].dtype}, not float32"
            )
    wrong = function.check(constants(stage), ports)
    if not wrong and function.same_shape:
        (source,), (target,) = stage.inputs.values(), stage.outputs.values()
        shape = (graph.inputs.get(source) or graph.tensors[source]).shape
        if graph.tensors[target].shape != shape:
            wrong = f"{source!r} is {list(shape)}, {target!r} {list(graph.tensors[target].shape)}"
    if wrong:
        raise BundleError(f"{where}: {wrong}; export the bundle again")


def constants(stage: Stage) -> Any:
    """The constants of a host function's call, typed.

    Raises:
        BundleError: they are not those of the function.
    """
    function = FUNCTIONS[stage.function or ""]
    try:
        return msgspec.convert(stage.params, function.params)
    except (msgspec.ValidationError, ValueError) as error:
        raise BundleError(
            f"stage {stage.name!r}, host function {stage.function!r}: its params: {error}"
        ) from None


def make_call(stage: Stage, resources: Resources) -> HostFunction:
    """The function that a stage calls.

    Raises:
        ValueError: the embodiment's statistics do not fit it.
    """
    function = FUNCTIONS[stage.function or ""]
    return function.make(constants(stage), resources)


def _text(ports: Ports) -> int:
    """Tokens that the text may take."""
    return ports["ids"].shape[0] if "ids" in ports else 0


def _shape(port: str, ports: Ports, wanted: tuple[int, ...]) -> str:
    shape = ports[port].shape
    return "" if shape == wanted else f"{port!r} is {list(shape)}, {list(wanted)} is wanted"


def _too_many(count: int, port: str, shape: tuple[int, ...]) -> str:
    return f"{count} tokens do not fit {port!r}, which is {list(shape)}"
