"""What a host function is: its ports, its constants, and what must hold between them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from msgspec import Struct
from numpy.typing import NDArray

from ..declarations import Input, Tensor

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


def misfit(port: str, ports: Ports, wanted: tuple[int, ...]) -> str:
    """What is bound to a port, if that has another shape than is wanted; empty if it has it."""
    shape = ports[port].shape
    return "" if shape == wanted else f"{port!r} is {list(shape)}, {list(wanted)} is wanted"
