"""The boards, in one table: what each can do, and where every figure comes from.

Measured figures come first, then datasheets, then what follows from them. A figure that nobody gave
is missing, and what depends on it says so instead of making one up.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from quant.recipes import Target

INT8_GAIN = 1.5
"""Times as many int8 products as bfloat16 ones on an Orin: 52 TOPS were measured at best on an AGX
Orin (K = 2048, N = 8192; 31 at K = 16384, 26 where N is small) beside 33 to 34 bfloat16 TFLOPS.
The datasheet's factor is 2. Source: github.com/cair-vinuni/FoldQuantVLA, its results on that board.
"""
INT4_TIME: Mapping[Target, float] = {"orin": 167 / 146}
"""Time of int4 weights with float inputs over that of the base format. On an AGX Orin a policy took
167 ms with them and 146 ms without (same source): they save memory there, and no time. Where nobody
measured, the roofline stands."""
EFFICIENCY = (0.28, 0.70)
"""Of a roofline, what published engines reach of it on an AGX Orin, from the least to the best. Two
that lie between, by arithmetic on their public shapes (docs/forecast.md): pi0.5 in bfloat16, two
views and ten steps, 0.62 of it in FlashRT's 193 ms and 0.34 in vla.cpp's 353 ms; the prefill of
Qwen2.5-VL-7B, 376 tokens in TensorRT-Edge-LLM's 261 ms, 0.56."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Board:
    """What a board can do at its highest clocks. A figure that is None is missing: nobody gave it.

    Units: 1e9 bytes, 1e12 operations a second, watts.
    """

    bandwidth_gb_s: float
    """Of its memory, reading."""
    int8_tops: float
    """Dense, of the GPU alone, as products reach it."""
    bf16_tflops: float
    """Dense, with float32 sums."""
    target: Target
    """What recipes for it are written for."""
    fp32_tflops: float | None = None
    """Without tensor cores: a runtime that allows no TF32 computes float32 products so."""
    fp8_tflops: float | None = None
    """Dense, of the GPU alone."""
    memory_gb: float | None = None
    """That host and GPU share, without what the system keeps."""
    power_w: float | None = None
    """That the whole module takes at most, in the power mode that the other figures are of."""
    sources: Mapping[str, str] = field(default_factory=dict)
    """Of every figure, by its name: measured, datasheet, derived, or why it is missing."""
    largest_engine_bytes: int | None = None
    """Weights that one engine may hold and still build; None where no limit is known."""


FIGURES = (
    "bandwidth_gb_s", "int8_tops", "bf16_tflops", "fp32_tflops", "fp8_tflops",
    "memory_gb", "power_w",
)  # fmt: skip
"""Fields of a board that have a source."""
SEEN_TO_BUILD = 358_000_000
"""Bytes of 12 layers of Qwen2.5-0.5B in float16, 14 912 384 numbers each: the largest part of a
decoder that was seen to build every time on an Orin Nano 8 GB with TensorRT 10.3. Whole, 24 layers,
it asked for one block of 988 MB and failed whatever the workspace (onnxsim, pull requests 1765 and
1772). Nobody tried what lies between."""
_NO_FP8 = "missing: an Orin has no FP8 (SM 8.7)"
_NANO_MEMORY = (
    "derived: the kernel sees 7.9 (public tegrastats logs), 0.5 less for a system without a desktop"
)
_SEEN = "measured: MemTotal of public logs; what the system takes of it is not known"

# Derived bf16: SMs x 2048 x clock, at the highest GPU clock of the power mode: half of the
# datasheet's int8, which is how many products an Ampere tensor core makes of them. Derived int8:
# INT8_GAIN times that; the datasheet's own number stands in brackets. Derived fp32: SMs x 256 x
# clock, a multiplication and an addition in each of 128 lanes.
BOARDS = {
    "orin-nano-8gb": Board(
        bandwidth_gb_s=68.0,
        int8_tops=INT8_GAIN * 10.0,
        bf16_tflops=10.0,
        fp32_tflops=1.28,
        memory_gb=7.4,
        power_w=15.0,
        target="orin",
        sources={
            "bandwidth_gb_s": "datasheet (15 W)",
            "int8_tops": "derived: 1.5 times bf16 (20 in the datasheet)",
            "bf16_tflops": "derived: half of the datasheet's int8",
            "fp32_tflops": "derived: 8 SMs at 625 MHz",
            "fp8_tflops": _NO_FP8,
            "memory_gb": _NANO_MEMORY,
            "power_w": "datasheet: its highest mode but SUPER",
        },
        largest_engine_bytes=SEEN_TO_BUILD,
    ),
    "orin-nano-8gb-super": Board(
        bandwidth_gb_s=102.0,
        int8_tops=INT8_GAIN * 16.5,
        bf16_tflops=16.5,
        fp32_tflops=2.09,
        memory_gb=7.4,
        power_w=25.0,
        target="orin",
        sources={
            "bandwidth_gb_s": "datasheet (25 W and MAXN SUPER)",
            "int8_tops": "derived: 1.5 times bf16 (33 in the datasheet)",
            "bf16_tflops": "derived: 8 SMs at 1.02 GHz",
            "fp32_tflops": "derived: 8 SMs at 1.02 GHz",
            "fp8_tflops": _NO_FP8,
            "memory_gb": _NANO_MEMORY,
            "power_w": "datasheet: the 25 W mode; MAXN SUPER has no limit",
        },
        largest_engine_bytes=SEEN_TO_BUILD,
    ),
    "orin-nx-16gb-super": Board(
        bandwidth_gb_s=102.4,
        int8_tops=INT8_GAIN * 19.0,
        bf16_tflops=19.0,
        fp32_tflops=2.40,
        memory_gb=16.3,
        power_w=40.0,
        target="orin",
        sources={
            "bandwidth_gb_s": "datasheet, unchecked",
            "int8_tops": "derived: 1.5 times bf16 (38 in the datasheet)",
            "bf16_tflops": "derived: 8 SMs at 1.17 GHz",
            "fp32_tflops": "derived: 8 SMs at 1.17 GHz",
            "fp8_tflops": _NO_FP8,
            "memory_gb": _SEEN,
            "power_w": "datasheet, unchecked: the 40 W mode; MAXN SUPER has no limit",
        },
    ),
    "agx-orin-64gb": Board(
        bandwidth_gb_s=152.8,
        int8_tops=52.0,
        bf16_tflops=33.5,
        fp32_tflops=5.32,
        memory_gb=65.9,
        power_w=60.0,
        target="orin",
        sources={
            "bandwidth_gb_s": "measured (204.8 in the datasheet)",
            "int8_tops": "measured at best (FoldQuantVLA)",
            "bf16_tflops": "measured: 33.4 to 34.1",
            "fp32_tflops": "derived: 16 SMs at 1.3 GHz",
            "fp8_tflops": _NO_FP8,
            "memory_gb": _SEEN,
            "power_w": "datasheet: the module's highest",
        },
    ),
    "thor-t5000": Board(
        bandwidth_gb_s=257.0,
        int8_tops=270.0,
        bf16_tflops=135.0,
        fp32_tflops=8.06,
        memory_gb=131.9,
        power_w=130.0,
        target="thor",
        sources={
            "bandwidth_gb_s": "measured by ApxInf (273 in the datasheet)",
            "int8_tops": "derived: twice bf16, unmeasured",
            "bf16_tflops": "measured by ApxInf",
            "fp32_tflops": "derived: 20 SMs at 1.575 GHz",
            "fp8_tflops": "missing: nobody has measured it, and the datasheet's FP4 is sparse",
            "memory_gb": _SEEN,
            "power_w": "datasheet: MAXN",
        },
    ),
}
OTHER_NAMES = {
    "orin-agx-64": "agx-orin-64gb",
    "orin-nano-8": "orin-nano-8gb",
    "orin-nx-16": "orin-nx-16gb-super",
    "thor": "thor-t5000",
}
"""What else people call them."""


def name_of_board(name: str) -> str:
    """The key of `BOARDS`.

    Raises:
        ValueError: it is no board.
    """
    found = OTHER_NAMES.get(name, name)
    if found not in BOARDS:
        raise ValueError(
            f"unknown board {name!r}; there are {sorted(BOARDS)}, also called {sorted(OTHER_NAMES)}"
        )
    return found


def find_board(name: str) -> Board:
    """The board of that name; raises as `name_of_board`."""
    return BOARDS[name_of_board(name)]
