"""Calls of host functions in a graph, by name.

Each is declared like an engine: ports, constants, and what must hold between them, so that a graph
that it cannot serve is refused before anything is loaded. `make` is called once, at load, and
returns the function that fills the output arrays from the input values.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from ..declarations import Input, Tensor
from ..errors import BundleError
from ..graph import Graph, Stage
from . import numbers, tokens
from .function import Function, HostFunction, Resources

FUNCTIONS: Mapping[str, Function] = {**tokens.FUNCTIONS, **numbers.FUNCTIONS}


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
