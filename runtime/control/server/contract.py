"""What may be sent to a policy and what comes back, from the declarations in its bundle.

An observation is a map with a value for each input that the robot gives. An input answers to its
own name, and to openpi's names where these are clear: `prompt` is the only text,
`observation/image` the only picture, `observation/state` the only vector, and `observation/NAME`
the input NAME.

Beside values a message may say: `reset` (true: this observation starts an episode), `seed` (of that
episode's noise), `latch` (names of latches that keep this observation), `outputs` (names of outputs
to send along), `request_id` (a number that grows, and comes back), or `ask` alone ("status").
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...bundle import Manifest
from ...declarations import Input, Source, from_source, seen_later
from ...errors import BundleError, ObservationError
from ...graph import Graph
from ...prompt import MAX_INSTRUCTION
from .wire import Bounds, WireError

GIVEN: tuple[Source, ...] = ("robot", "operator", "latch", "drawn", "loop")
"""Sources of inputs that a client may send."""
WORDS = {"reset", "seed", "latch", "outputs", "request_id", "ask"}
"""Keys that are no input."""
STATUS = "status"
_ANSWERS = (STATUS,)
MAX_ID = 2**63
_NUMBER_BYTES, _FLOAT_BYTES, _CHARACTER_BYTES, _SLACK = 9, 4, 4, 1024
"""Of a number, as float64 behind its msgpack byte; of a pixel's byte, since a picture is sent as
float32 so often that this has to fit in, to be told; of a character; of names and headers."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """An observation, judged by the declarations; its values are not the policy's yet."""

    values: Mapping[str, Any]
    """By the input's own name: an array of the declared shape, or a text."""
    reset: bool = False
    seed: int | None = None
    latch: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()


class Contract:
    """Of one bundle.

    Raises:
        BundleError: an input has the name of a word that means something else here, or the policy
            has to see every step.
    """

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.given = from_source(graph.inputs, *GIVEN)
        if taken := sorted(WORDS & self.given.keys()):
            raise BundleError(
                f"the input {taken[0]!r} has the name of a word of the protocol: export the "
                "policy with another name, or drive it from Python"
            )
        if later := sorted(seen_later(graph.inputs)):
            raise BundleError(
                f"this policy has to see {', '.join(later)} in every step, and a client shows what "
                "it sees only when it asks: drive it from Python, or with anchorvla run"
            )
        self.keys = _keys(self.given)
        self.bounds = Bounds(
            num_bytes=sum(_num_bytes(i) + _SLACK for i in self.given.values()) + 4 * _SLACK,
            num_values=sum(_num_values(i) + 16 for i in self.given.values()) + 64,
        )
        self.reply_bytes = sum(graph.tensors[name].num_bytes for name in graph.outputs)
        """Of all outputs together."""

    def request(self, message: Mapping[str, Any]) -> Request:
        """What a message asks the policy for.

        Raises:
            WireError: a word of the protocol has a value that it cannot have.
            ObservationError: a value is of no input, or not what that input declares.
        """
        values: dict[str, Any] = {}
        for key, value in message.items():
            if key in WORDS:
                continue
            name = self.keys.get(key)
            if name is None:
                raise ObservationError(
                    f"no input {key!r}; what may be sent is: {', '.join(self.keys)}"
                )
            if name in values:
                raise ObservationError(f"{name} is given twice, the second time as {key!r}")
            values[name] = _value(name, self.given[name], value)
        return Request(
            values=values,
            reset=_flag(message.get("reset", False)),
            seed=_number("seed", message.get("seed"), 2**64),
            latch=_names("latch", message, from_source(self.graph.inputs, "latch")),
            outputs=_names("outputs", message, self.graph.outputs),
        )

    def describe(self, manifest: Manifest, embodiment: str) -> dict[str, Any]:
        """What a client needs to know of the policy, in words of msgpack."""
        graph, target = self.graph, self.graph.outputs[self.graph.target]
        steps = graph.tensors[graph.target].shape[0]
        return {
            "policy": manifest.policy,
            "recipe": manifest.recipe.name,
            "license": manifest.license,
            "bundle_sha256": manifest.content_sha256,
            "embodiment": embodiment,
            "inputs": {
                name: {
                    "kind": i.kind, "source": i.source, "shape": i.shape, "dtype": i.dtype,
                    "unit": i.unit, "pace": i.pace, "is_required": _is_required(i),
                    "keys": [key for key, of in self.keys.items() if of == name],
                }
                for name, i in self.given.items()
            },
            "outputs": {
                name: {
                    "shape": graph.tensors[name].shape, "dtype": graph.tensors[name].dtype,
                    "axes": o.axes, "units": o.units, "step_s": o.step_s,
                }
                for name, o in graph.outputs.items()
            },
            "actions": graph.target,
            "chunk_shape": graph.tensors[graph.target].shape,
            "rate_hz": None if target.step_s is None else 1 / target.step_s,
            "chunk_s": None if target.step_s is None else steps * target.step_s,
            "max_message_bytes": self.bounds.num_bytes,
        }  # fmt: skip


def take_id(message: Mapping[str, Any]) -> int | None:
    """The number of a request, if it has one.

    Raises:
        WireError: it is no number.
    """
    return _number("request_id", message.get("request_id"), MAX_ID)


def question(message: Mapping[str, Any]) -> str | None:
    """What a message asks about the server; None of an observation.

    Raises:
        WireError: there is no such question, or something stands beside it.
    """
    if "ask" not in message:
        return None
    if not isinstance(message["ask"], str) or message["ask"] not in _ANSWERS:
        raise WireError(f"ask must be one of {', '.join(_ANSWERS)}, got {message['ask']!r}")
    if beside := message.keys() - {"ask", "request_id"}:
        raise WireError(f"a question stands alone, without {', '.join(sorted(beside))}")
    return STATUS


def _keys(given: Mapping[str, Input]) -> dict[str, str]:
    """What an input may be called in a message -> its own name. Own names go first."""
    called: dict[str, list[str]] = {}
    for name, declared in given.items():
        if declared.source == "robot":
            called.setdefault(f"observation/{name}", []).append(name)
            short = {"image": "image", "vector": "state"}.get(declared.kind)
            if short and short != name:
                called.setdefault(f"observation/{short}", []).append(name)
        elif declared.kind == "text":
            called.setdefault("prompt", []).append(name)
    clear = {key: names[0] for key, names in called.items() if len(names) == 1}
    return {**clear, **{name: name for name in given}}


def _is_required(declared: Input) -> bool:
    """In every observation, or, of the operator's, in the first of an episode."""
    return declared.source in ("robot", "operator")


def _num_bytes(declared: Input) -> int:
    if declared.kind == "text":
        return _CHARACTER_BYTES * MAX_INSTRUCTION
    per_entry = _FLOAT_BYTES if declared.dtype == "uint8" else _NUMBER_BYTES
    return per_entry * int(np.prod(declared.shape))


def _num_values(declared: Input) -> int:
    """As a list; only vectors may come as one."""
    return declared.shape[0] if declared.kind == "vector" else 0


def _value(name: str, declared: Input, value: Any) -> Any:
    """A value of the declared shape; what it holds is the policy's to judge."""
    if declared.kind == "text":
        if not isinstance(value, str):
            raise ObservationError(f"{name} must be text, got {_described(value)}")
        return value
    if declared.kind == "vector" and isinstance(value, list):
        if not all(isinstance(number, (int, float)) for number in value):
            raise ObservationError(f"{name} must be a list of numbers")
        try:
            value = np.array(value, np.float64)
        except OverflowError as error:
            raise ObservationError(f"{name} holds a number that is too large: {error}") from None
    wanted = "uint8" if declared.dtype == "uint8" else "numbers"
    if (
        not isinstance(value, np.ndarray)
        or value.shape != declared.shape
        or (value.dtype != np.uint8 if wanted == "uint8" else value.dtype.kind not in "fiu")
    ):
        raise ObservationError(
            f"{name} must be {wanted} {list(declared.shape)}, got {_described(value)}"
        )
    return value


def _described(value: Any) -> str:
    if isinstance(value, np.ndarray):
        return f"{value.dtype} {list(value.shape)}"
    return "nothing" if value is None else type(value).__name__


def _flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise WireError(f"reset must be true or false, got {value!r}")
    return value


def _number(word: str, value: Any, end: int) -> int | None:
    if value is None:
        return None
    if type(value) is not int or not 0 <= value < end:
        raise WireError(f"{word} must be a whole number in [0, {end}), got {value!r}")
    return value


def _names(word: str, message: Mapping[str, Any], known: Mapping[str, Any]) -> tuple[str, ...]:
    names = message.get(word, [])
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise WireError(f"{word} must be a list of names, got {_described(names)}")
    if unknown := [name for name in names if name not in known]:
        raise ObservationError(
            f"no {word} {unknown[0]!r}; this policy has {', '.join(known) or 'none'}"
        )
    return tuple(dict.fromkeys(names))
