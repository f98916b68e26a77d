"""Messages as openpi sends them: msgpack, and arrays in it as maps, judged before they are decoded.

An array is `{b"__ndarray__": True, b"data": bytes, b"dtype": "<f4", b"shape": [...]}`, a scalar
of numpy `{b"__npgeneric__": True, b"data": number, b"dtype": ...}` (openpi-client, its
`msgpack_numpy.py`).

A message of a stranger is walked first, by its headers alone: how deep it nests, how many values
it holds and whether each length that it claims is there. Only then msgspec decodes it, so what a
message makes this process allocate is a small multiple of its own bytes. An array is a view of
the bytes it came in, and its dtype one of a list: there are no objects, records or texts.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

DTYPES = {
    text: np.dtype(text)
    for text in ("|u1", "|i1", "|b1", "<u2", "<i2", "<u4", "<i4", "<u8", "<i8", "<f2", "<f4", "<f8")
}
"""What an array may hold, as numpy writes it: numbers, little-endian."""
MAX_RANK = 8
_ARRAY = {b"__ndarray__", b"data", b"dtype", b"shape"}
_SCALAR = {b"__npgeneric__", b"data", b"dtype"}

# msgpack's first bytes: what follows one of them has this many bytes, or a length or a count of
# this many. Extension types are in none of these: openpi sends none.
_FIXED = {0xC0: 0, 0xC2: 0, 0xC3: 0, 0xCA: 4, 0xCB: 8, 0xCC: 1, 0xCD: 2, 0xCE: 4, 0xCF: 8}
_FIXED |= {0xD0: 1, 0xD1: 2, 0xD2: 4, 0xD3: 8}
_SIZED = {0xC4: 1, 0xC5: 2, 0xC6: 4, 0xD9: 1, 0xDA: 2, 0xDB: 4}
_COUNTED = {0xDC: 2, 0xDD: 4, 0xDE: 2, 0xDF: 4}
_MAPS = {0xDE, 0xDF, *range(0x80, 0x90)}


class WireError(ValueError):
    """A message that is not what this protocol sends."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Bounds:
    """What a message may be, at most."""

    num_bytes: int
    num_values: int
    """Keys, numbers, texts, lists and maps, counted all over."""
    depth: int = 4
    """Of lists and maps in each other; an array in an observation has three."""


def pack(message: Mapping[str, Any]) -> bytes:
    """A message as bytes; arrays and numpy's numbers in it as openpi sends them."""
    return msgspec.msgpack.encode(message, enc_hook=_packed)


def unpack(data: bytes, bounds: Bounds) -> dict[str, Any]:
    """A message from bytes. Arrays are views of them that cannot be written.

    Raises:
        WireError: says what is wrong; nothing of it was decoded if it breaks a bound.
    """
    num_keys = _walk(data, bounds)
    try:
        message = msgspec.msgpack.decode(data)
    except (msgspec.MsgspecError, ValueError) as error:
        raise WireError(f"the message is no msgpack: {error}") from None
    if len(message) != num_keys:
        raise WireError("the message has a key twice")
    return {_text_key(key): _unpacked(value, f"{key!r}") for key, value in message.items()}


def _walk(data: bytes, bounds: Bounds) -> int:
    """Judge a message by its headers; how many keys it has.

    Raises:
        WireError: it is no map, breaks a bound, or claims what is not there.
    """
    if len(data) > bounds.num_bytes:
        raise WireError(f"the message has {len(data)} bytes, at most {bounds.num_bytes} are taken")
    if not data or data[0] not in _MAPS:
        raise WireError("a message is a msgpack map from names to values")
    at, count, num_keys = 0, 0, -1
    left: list[int] = [1]  # values to come, of each list or map that is open
    in_map = [False]
    while left:
        if left[-1] == 0:
            left.pop(), in_map.pop()
            continue
        is_key = in_map[-1] and left[-1] % 2 == 0
        left[-1] -= 1
        count += 1
        if count > bounds.num_values:
            raise WireError(f"the message holds more than {bounds.num_values} values")
        body, opened = _header(data, at)
        if is_key and not _is_name(data[at]):
            raise WireError(f"the message has a key at byte {at} that is no name")
        if opened is not None:
            num_keys = opened if num_keys < 0 else num_keys
            is_map = data[at] in _MAPS
            left.append(opened * 2 if is_map else opened)
            in_map.append(is_map)
            if left[-1] > len(data) - body:
                raise WireError(f"the message claims {opened} entries at byte {at}, and ends")
            if len(left) > bounds.depth + 1:
                raise WireError(f"the message nests deeper than {bounds.depth}")
        at = body
    if at != len(data):
        raise WireError(f"the message goes on behind its end at byte {at}")
    return num_keys


def _header(data: bytes, at: int) -> tuple[int, int | None]:
    """Where the value at `at` ends, or its entries begin, and how many these are; None of one that
    has none."""
    if at >= len(data):
        raise WireError(f"the message breaks off at byte {at}")
    kind = data[at]
    end, opened = at + 1, None
    if 0x80 <= kind <= 0x9F:
        opened = kind & 0x0F
    elif 0xA0 <= kind <= 0xBF:
        end += kind & 0x1F
    elif kind in _SIZED:
        end += _SIZED[kind]
        end += int.from_bytes(data[at + 1 : end], "big")
    elif kind in _COUNTED:
        end += _COUNTED[kind]
        opened = int.from_bytes(data[at + 1 : end], "big")
    elif kind in _FIXED:
        end += _FIXED[kind]
    elif 0x80 <= kind < 0xE0:
        raise WireError(f"the message has a value of an unknown type ({kind:#x}) at byte {at}")
    if end > len(data):
        raise WireError(f"the message claims {end - at} bytes at byte {at}, and ends")
    return end, opened


def _is_name(kind: int) -> bool:
    return kind in _SIZED or 0xA0 <= kind <= 0xBF


def _text_key(key: Any) -> str:
    if not isinstance(key, str):
        raise WireError(f"the message has the key {key!r}, and names are texts")
    return key


def _unpacked(value: Any, what: str) -> Any:
    """With arrays and scalars for the maps that mean them."""
    if isinstance(value, list):
        return [_unpacked(item, what) for item in value]
    if not isinstance(value, dict):
        return value
    if b"__ndarray__" in value:
        return _array(value, what)
    if b"__npgeneric__" in value:
        if value.keys() != _SCALAR or not isinstance(value[b"data"], (bool, int, float)):
            raise WireError(f"{what} is a malformed scalar of numpy")
        return value[b"data"]
    return {_text_key(key): _unpacked(item, what) for key, item in value.items()}


def _array(value: Mapping[Any, Any], what: str) -> NDArray[Any]:
    if value.keys() != _ARRAY:
        raise WireError(f"{what} is a malformed array: it has the keys {sorted(map(str, value))}")
    data, name, shape = value[b"data"], value[b"dtype"], value[b"shape"]
    dtype = DTYPES.get(name) if isinstance(name, str) else None
    if dtype is None:
        raise WireError(f"{what} is an array of {name!r}; arrays of {', '.join(DTYPES)} are taken")
    if (
        not isinstance(shape, list)
        or len(shape) > MAX_RANK
        or any(type(side) is not int or side < 0 for side in shape)
        or not isinstance(data, bytes)
        or math.prod(shape) * dtype.itemsize != len(data)
    ):
        size = len(data) if isinstance(data, bytes) else "no"
        raise WireError(f"{what} is an array {name} of shape {shape} in {size} bytes")
    array: NDArray[Any] = np.ndarray(shape, dtype, buffer=data)
    return array


def _packed(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        if value.dtype.str not in DTYPES:
            raise NotImplementedError(f"arrays of {value.dtype} are not sent")
        return {
            b"__ndarray__": True,
            b"data": value.tobytes(),
            b"dtype": value.dtype.str,
            b"shape": value.shape,
        }
    if isinstance(value, np.generic):
        return value.item()
    raise NotImplementedError(f"{type(value).__name__} is not sent")
