"""Number formats as pure functions: a weight in, its codes and scales out, and back.

All integer formats are symmetric: zero is code 0, so zeros stay zeros, and an engine needs no zero
points. Codes are rounded half to even, as ONNX `QuantizeLinear` does. A weight is [K, N] as an ONNX
MatMul takes it: K inputs, N outputs.

| format | scales | codes |
|---|---|---|
| int8 per tensor | one | -127 to 127 |
| int8 per channel | one per output, [N] | -127 to 127 |
| int4 in blocks | one per `block` inputs and output, [K / block, N] | -7 to 7 |

-128 and -8 are not used: with them the range would not be symmetric and the largest weight of a
channel could not be exact on both sides.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

INT8_MAX = 127
INT4_MAX = 7
INT4_BLOCK = 128
FLOAT16_MAX = 65504.0
Rounding = Callable[[NDArray[np.float32]], NDArray[np.float32]]


@dataclass(frozen=True, slots=True)
class Quantized:
    """Codes with their scales. `axis` and `block` are those of ONNX `DequantizeLinear`."""

    codes: NDArray[np.int8]
    """[K, N]; int4 codes too are held one to a byte."""
    scales: NDArray[np.float32]
    """[] per tensor, [N] per channel, [K / block, N] in blocks."""
    axis: int | None
    """1 per channel, 0 in blocks, None per tensor."""
    block: int | None
    """Codes along `axis` that share a scale; None without blocks."""

    @property
    def bits(self) -> int:
        """Of a code in a file."""
        return 8 if self.block is None else 4

    @property
    def num_bytes(self) -> int:
        """Codes packed and scales in float32."""
        return -(-self.codes.size * self.bits // 8) + 4 * self.scales.size


def int8_per_tensor(weight_KN: NDArray[np.float32]) -> Quantized:
    """One scale for all of it.

    Raises:
        ValueError: NaN or infinity.
    """
    scale = _scale(np.abs(_finite(weight_KN)).max(initial=0.0), INT8_MAX)
    return Quantized(_codes(weight_KN, scale, INT8_MAX), scale, None, None)


def int8_per_channel(
    weight_KN: NDArray[np.float32], *, round_scales: Rounding | None = None
) -> Quantized:
    """A scale for each output.

    Args:
        round_scales: to numbers that a coarser format holds too; never down.

    Raises:
        ValueError: NaN or infinity.
    """
    scales = _scale(np.abs(_finite(weight_KN)).max(axis=0, initial=0.0), INT8_MAX, round_scales)
    return Quantized(_codes(weight_KN, scales, INT8_MAX), scales, 1, None)


def int4_blocks(
    weight_KN: NDArray[np.float32],
    *,
    block: int = INT4_BLOCK,
    round_scales: Rounding | None = None,
) -> Quantized:
    """A scale for each output and `block` inputs; `round_scales` as in `int8_per_channel`.

    Raises:
        ValueError: NaN or infinity, or K is no multiple of `block` (see `pad_inputs`).
    """
    num_inputs, num_outputs = weight_KN.shape
    if num_inputs % block:
        raise ValueError(
            f"a weight of {num_inputs} inputs does not divide into blocks of {block}: pad it to "
            f"{-(-num_inputs // block) * block} (pad_inputs)"
        )
    blocks = _finite(weight_KN).reshape(-1, block, num_outputs)
    scales = _scale(np.abs(blocks).max(axis=1, initial=0.0), INT4_MAX, round_scales)
    codes = _codes(blocks, scales[:, None], INT4_MAX).reshape(weight_KN.shape)
    return Quantized(codes, scales, 0, block)


def dequantize(quantized: Quantized) -> NDArray[np.float32]:
    """[K, N]: what an engine computes with."""
    scales = quantized.scales
    if quantized.block is not None:
        scales = scales.repeat(quantized.block, axis=0)
    return quantized.codes.astype(np.float32) * scales


def pad_inputs(weight_KN: NDArray[np.float32], multiple: int) -> NDArray[np.float32]:
    """Rows of zeros below, up to the next multiple; what feeds them may be anything finite."""
    missing = -len(weight_KN) % multiple
    return np.pad(weight_KN, ((0, missing), (0, 0)))


def round_to_bfloat16(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """The nearest bfloat16, half to even, held as float32; NaN stays NaN, overflow is infinity."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) & np.uint32(
        0xFFFF0000
    )
    return np.where(np.isnan(values), np.float32(np.nan), rounded.view(np.float32))


def up_to_bfloat16(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """The next larger bfloat16 of positive numbers, held as float32."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    up: NDArray[np.float32] = ((bits + np.uint32(0xFFFF)) & np.uint32(0xFFFF0000)).view(np.float32)
    return up


def round_to_float16(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """The nearest float16, held as float32.

    Raises:
        ValueError: a number leaves float16's range and would become infinity.
    """
    largest = np.abs(values).max(initial=0.0)
    if largest > FLOAT16_MAX:
        raise ValueError(
            f"{largest:.4g} leaves float16, which ends at {FLOAT16_MAX:g}: keep this in float32"
        )
    return values.astype(np.float16).astype(np.float32)


def _finite(weight: NDArray[np.float32]) -> NDArray[np.float32]:
    if not np.isfinite(weight).all():
        count = int((~np.isfinite(weight)).sum())
        raise ValueError(f"{count} of {weight.size} weights are NaN or infinity")
    return weight


def _scale(
    largest: NDArray[np.float32] | np.float32, top: int, rounding: Rounding | None = None
) -> NDArray[np.float32]:
    """largest / top; 1 where that is zero, or so small that float32 cannot divide by it."""
    scale = np.asarray(largest, np.float32) / np.float32(top)
    if rounding is not None:
        scale = rounding(scale)
    usable = scale >= np.finfo(np.float32).tiny
    return np.where(usable, scale, np.float32(1.0)).astype(np.float32)


def _codes(values: NDArray[np.float32], scale: NDArray[np.float32], top: int) -> NDArray[np.int8]:
    codes: NDArray[np.int8] = np.clip(np.rint(values / scale), -top, top).astype(np.int8)
    return codes
