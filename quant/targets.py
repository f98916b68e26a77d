"""Boards as two numbers, arithmetic and bandwidth, and what a linear layer costs on them.

A roofline: a product takes as long as its arithmetic or the reading of its weights, whichever is
longer. No board is faster than that; one that keeps activations in memory, launches kernels or
waits is slower. It ranks formats, and it does not replace a measurement. Where others measured that
a format is slower than its roofline, the measurement counts: `INT8_GAIN`, `INT4_TIME`, and what
`Product.time_ms` says of int8 weights with float inputs.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from models.anchorvla4d.config import PolicyConfig
from quant.formats import INT4_BLOCK
from quant.recipes import Format, Target

if TYPE_CHECKING:  # a command line that names a board needs no torch
    from torch import nn

ITEM_BYTES = {"float32": 4.0, "float": 2.0, "w8": 1.0, "w8a8": 1.0, "w4": 0.5, "fp8": 1.0}
"""Per weight. The base is bfloat16 or float16."""
SCALE_BYTES = 2
"""Scales are written in the base format."""
Costs = Mapping[str, Mapping[Format, float]]
"""Of each group of layers in each format."""
INT8_GAIN = 1.5
"""Times as many int8 products as bfloat16 ones on an Orin: 52 TOPS were measured at best on an AGX
Orin (K = 2048, N = 8192; 31 at K = 16384, 26 where N is small) beside 33 to 34 bfloat16 TFLOPS.
The datasheet's factor is 2. Source: github.com/cair-vinuni/FoldQuantVLA, its results on that board.
"""
INT4_TIME: Mapping[Target, float] = {"orin": 167 / 146}
"""Time of int4 weights with float inputs over that of the base format. On an AGX Orin a policy took
167 ms with them and 146 ms without (same source): they save memory there, and no time. Where nobody
measured, the roofline stands."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Board:
    """What a board can do at its highest clocks."""

    bandwidth_gb_s: float
    """Of its memory, reading; 1e9 bytes."""
    int8_tops: float
    """Dense, of the GPU alone, as products reach it."""
    bf16_tflops: float
    """Dense, with float32 sums."""
    target: Target
    """What recipes for it are written for."""
    source: str
    """Of the three numbers, in this order: measured, datasheet or derived."""
    largest_engine_bytes: int | None = None
    """Weights that one engine may hold and still build; None where no limit is known."""


SEEN_TO_BUILD = 358_000_000
"""Bytes of 12 layers of Qwen2.5-0.5B in float16, 14 912 384 numbers each: the largest part of a
decoder that was seen to build every time on an Orin Nano 8 GB with TensorRT 10.3. Whole, 24 layers,
it asked for one block of 988 MB and failed whatever the workspace (onnxsim, pull requests 1765 and
1772). Nobody tried what lies between."""

# Derived bf16: SMs x 2048 x clock, at the highest GPU clock of the power mode: half of the
# datasheet's int8, which is how many products an Ampere tensor core makes of them. Derived int8:
# INT8_GAIN times that; the datasheet's own number stands in brackets.
BOARDS = {
    "orin-nano-8gb": Board(
        bandwidth_gb_s=68.0,
        int8_tops=INT8_GAIN * 10.0,
        bf16_tflops=10.0,
        target="orin",
        source="datasheet (15 W); derived (20 in the datasheet); derived: half of the datasheet's "
        "int8",
        largest_engine_bytes=SEEN_TO_BUILD,
    ),
    "orin-nano-8gb-super": Board(
        bandwidth_gb_s=102.0,
        int8_tops=INT8_GAIN * 16.5,
        bf16_tflops=16.5,
        target="orin",
        source="datasheet (MAXN SUPER); derived (33 in the datasheet); derived: 8 SMs at 1.02 GHz",
        largest_engine_bytes=SEEN_TO_BUILD,
    ),
    "orin-nx-16gb-super": Board(
        bandwidth_gb_s=102.4,
        int8_tops=INT8_GAIN * 19.0,
        bf16_tflops=19.0,
        target="orin",
        source="datasheet, unchecked; derived (38 in the datasheet); derived: 8 SMs at 1.17 GHz",
    ),
    "agx-orin-64gb": Board(
        bandwidth_gb_s=152.8,
        int8_tops=52.0,
        bf16_tflops=33.5,
        target="orin",
        source="measured (204.8 in the datasheet); measured at best: 52; measured: 33 to 34",
    ),
    "thor-t5000": Board(
        bandwidth_gb_s=257.0,
        int8_tops=270.0,
        bf16_tflops=135.0,
        target="thor",
        source="measured (273 in the datasheet); derived: twice bf16, unmeasured; measured",
    ),
}


@dataclass(frozen=True, slots=True)
class Product:
    """What a tick does with one linear layer."""

    num_inputs: int
    num_outputs: int
    rows: int
    """Vectors that one call multiplies."""
    calls: int

    @property
    def flops(self) -> int:
        """A multiplication and an addition per weight and row; all calls."""
        return 2 * self.num_inputs * self.num_outputs * self.rows * self.calls

    def num_bytes(self, number_format: Format) -> float:
        """Weights with their scales, read anew by every call; int4 pads inputs to its blocks."""
        if number_format == "w4":
            inputs = -(-self.num_inputs // INT4_BLOCK) * INT4_BLOCK
            scales = inputs // INT4_BLOCK
        else:
            inputs = self.num_inputs
            scales = 1 if number_format in ("w8", "w8a8") else 0
        per_output = inputs * ITEM_BYTES[number_format] + scales * SCALE_BYTES
        return per_output * self.num_outputs * self.calls

    def time_ms(self, board: Board, number_format: Format) -> float:
        """By the roofline, or longer where that was measured; only w8a8 multiplies integers.

        int8 weights with float inputs (w8) are no scheme that TensorRT documents. They count as
        what can be relied upon: read, written in the base format, and read again.
        """
        num_bytes = self.num_bytes(number_format)
        if number_format == "w8":
            num_bytes += 2 * self.num_bytes("float")
        elif number_format == "w4" and board.target in INT4_TIME:
            return INT4_TIME[board.target] * self.time_ms(board, "float")
        return roofline_ms(board, self.flops, num_bytes, int8=number_format == "w8a8")


def roofline_ms(board: Board, flops: float, num_bytes: float, *, int8: bool) -> float:
    """The longer of arithmetic and reading, in milliseconds.

    Args:
        flops: operations, a multiplication and an addition counted as two.
        num_bytes: read from memory.
        int8: both factors are int8; otherwise they are bfloat16 or float16.
    """
    rate = (board.int8_tops if int8 else board.bf16_tflops) * 1e12
    return 1e3 * max(flops / rate, num_bytes / (board.bandwidth_gb_s * 1e9))


def tick_products(
    groups: Mapping[str, Mapping[str, nn.Linear]],
    config: PolicyConfig,
    grid: tuple[int, int],
    slots: int,
) -> dict[str, list[Product]]:
    """What a warm tick multiplies, one frame against a kept anchor; weights may be on meta.

    The frame's `grid` of patches goes through vision, projection and, beside the anchor's, the
    spatial blocks; `slots` tokens through the language model; the modulations of all steps through
    their layers at once; the actions through the head at every step. Left out are attention itself,
    the layers that no recipe quantizes, and the scale token, one row in every other spatial block.

    Args:
        groups: as `quant.search.sensitivity.group_layers` sorts them.
    """
    patches, head = grid[0] * grid[1], config.head
    steps = head.num_inference_timesteps
    rows_and_calls = {
        "vision": (patches, 1),
        "vision.merger": (patches // 4, 1),
        "language": (slots, 1),
        "spatial": (2 * patches, 1),
        "spatial.project": (patches, 1),
        "condition": (1, 1),
        "modulation": (steps, 1),
        "head": (head.prediction_horizon, steps),
    }
    products = {}
    for group, layers in groups.items():
        rows, calls = rows_and_calls.get(group) or rows_and_calls[group.split(".")[0]]
        products[group] = [
            Product(layer.in_features, layer.out_features, rows, calls) for layer in layers.values()
        ]
    return products


def tick_costs(
    products: Mapping[str, list[Product]], board: Board, formats: Collection[Format]
) -> dict[str, Costs]:
    """Each group's part of a tick: "ms" by the roofline, "share" of the bytes float32 reads."""
    whole = sum(p.num_bytes("float32") for group in products.values() for p in group)
    times = {
        g: {f: sum(p.time_ms(board, f) for p in of) for f in formats} for g, of in products.items()
    }
    shares = {
        g: {f: sum(p.num_bytes(f) for p in of) / whole for f in formats}
        for g, of in products.items()
    }
    return {"ms": times, "share": shares}
