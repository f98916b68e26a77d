"""Configurations as frozen dataclasses: read from JSON field by field, and their numbers checked.

Where one of several dataclasses may stand, the fields say which. The trade-off: nothing is
converted but a whole number where a float is asked for, so a file with a field too many, too few or
of another type is refused with the field's name.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Sequence
from typing import Any, Literal, TypeVar

T = TypeVar("T")
MAX_NUMBER = 2**31 - 1
"""Of anything that counts or measures: a larger one is damage, or another field's."""


def check_numbers(config: Any, where: str) -> None:
    """Refuse what counts nothing, is not finite, or cannot be meant."""
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        least = 0 if isinstance(value, tuple) else 1
        for number in value if isinstance(value, tuple) else (value,):
            if number is None or isinstance(number, bool):
                continue
            if isinstance(number, float):
                # A width factor, a rotary base, an epsilon: NaN fails the comparison too.
                if not 0 < number <= MAX_NUMBER:
                    raise ValueError(
                        f"{where}.{field.name} must be a finite number above zero, got {number}"
                    )
            elif not least <= number <= MAX_NUMBER:
                raise ValueError(
                    f"{where}.{field.name} must be from {least} to {MAX_NUMBER}, got {number}"
                )


def check_divides(small: int, large: int, small_name: str, large_name: str) -> None:
    if small <= 0 or large % small:
        raise ValueError(f"{small_name}={small} must divide {large_name}={large}")


def parse(cls: type[T], raw: Any, where: str) -> T:
    """Build the dataclass `cls` from JSON, refusing anything that does not fit its fields."""
    if not isinstance(raw, dict):
        raise ValueError(f"{where or 'config'} must be an object, got {type(raw).__name__}")
    hints = typing.get_type_hints(cls)
    fields = {f.name: f for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    prefix = f"{where}." if where else ""
    if unknown := sorted(raw.keys() - fields.keys()):
        raise ValueError(f"unknown fields {[prefix + n for n in unknown]}")
    required = {n for n, f in fields.items() if f.default is dataclasses.MISSING}
    if missing := sorted(required - raw.keys()):
        raise ValueError(f"missing fields {[prefix + n for n in missing]}")
    return cls(**{n: _value(hints[n], v, prefix + n) for n, v in raw.items()})


def _value(hint: Any, raw: Any, where: str) -> Any:
    or_none = ""
    if isinstance(hint, types.UnionType) and types.NoneType in (kinds := typing.get_args(hint)):
        if raw is None:
            return None
        or_none = " | None"
        (hint,) = (kind for kind in kinds if kind is not types.NoneType)
    if _is_choice(hint):
        hint = _closest(typing.get_args(hint), raw)
    if dataclasses.is_dataclass(hint):
        return parse(typing.cast(type, hint), raw, where)
    if typing.get_origin(hint) is tuple:
        if not isinstance(raw, list):
            raise ValueError(f"{where} must be a list, got {raw!r}")
        return tuple(_value(typing.get_args(hint)[0], item, where) for item in raw)
    if typing.get_origin(hint) is Literal:
        if raw not in typing.get_args(hint):
            raise ValueError(f"{where} must be one of {typing.get_args(hint)}, got {raw!r}")
        return raw
    if hint is float and isinstance(raw, int) and not isinstance(raw, bool):
        return float(raw)
    if not isinstance(raw, hint) or (isinstance(raw, bool) and hint is not bool):
        raise ValueError(f"{where} must be {getattr(hint, '__name__', hint)}{or_none}, got {raw!r}")
    return raw


def _is_choice(hint: Any) -> bool:
    """Whether it is one of several dataclasses."""
    return isinstance(hint, types.UnionType) and all(
        map(dataclasses.is_dataclass, typing.get_args(hint))
    )


def _closest(choices: Sequence[Any], raw: Any) -> Any:
    """The dataclass that knows the most of an object's fields; of equals, the first."""
    given = set(raw) if isinstance(raw, dict) else set()
    return max(choices, key=lambda c: len(given & {f.name for f in dataclasses.fields(c)}))
