"""What a linear layer costs on a board.

A roofline: a product takes as long as its arithmetic or the reading of its weights, whichever is
longer. No board is faster than that; one that keeps activations in memory, launches kernels or
waits is slower (`quant.boards.EFFICIENCY`). It ranks formats, and does not replace a measurement.
Where others measured that a format is slower than its roofline, the measurement counts:
`quant.boards.INT8_GAIN`, `INT4_TIME`, and what `Product.time_ms` says of int8 weights with float
inputs.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from models.families import family_of
from models.networks.work import Layer, Tokens, Work
from models.policy_config import PolicyConfig
from quant.boards import INT4_TIME, Board
from quant.formats import INT4_BLOCK
from quant.recipes import Base, Format, Rule

ITEM_BYTES = {"float32": 4.0, "float": 2.0, "w8": 1.0, "w8a8": 1.0, "w4": 0.5, "fp8": 1.0}
"""Per weight. The base is bfloat16 or float16."""
Costs = Mapping[str, Mapping[Format, float]]
"""Of each group of layers in each format."""


class MissingFigureError(ValueError):
    """A board's figure that nobody gave; its only argument is the figure's name."""


def rate_of(number_format: Format) -> str:
    """The board's figure for products of this format: only w8a8 multiplies integers, and float32
    is float32, for plans are built without TF32."""
    rates = {"w8a8": "int8_tops", "fp8": "fp8_tflops", "float32": "fp32_tflops"}
    return rates.get(number_format, "bf16_tflops")


@dataclass(frozen=True, slots=True)
class Product:
    """What a tick, or one call, does with one linear layer."""

    num_inputs: int
    num_outputs: int
    rows: int
    """Vectors that one call multiplies."""
    calls: int

    @classmethod
    def of(cls, layer: Layer, calls: int = 1) -> Product:
        return cls(layer.num_inputs, layer.num_outputs, layer.rows, calls)

    @property
    def flops(self) -> int:
        """A multiplication and an addition per weight and row; all calls."""
        return 2 * self.num_inputs * self.num_outputs * self.rows * self.calls

    def num_bytes(self, number_format: Format, base: Base = "bfloat16") -> float:
        """Weights with their scales, read anew by every call; int4 pads inputs to its blocks."""
        base_bytes = item_bytes("float", base)
        if number_format == "w4":
            inputs = -(-self.num_inputs // INT4_BLOCK) * INT4_BLOCK
            scales = inputs // INT4_BLOCK
        else:
            inputs = self.num_inputs
            scales = 1 if number_format in ("w8", "w8a8") else 0
        per_output = inputs * item_bytes(number_format, base) + scales * base_bytes
        return per_output * self.num_outputs * self.calls

    def time_ms(self, board: Board, number_format: Format) -> float:
        """By the roofline, or longer where that was measured.

        int8 weights with float inputs (w8) are no scheme that TensorRT documents. They count as
        what can be relied upon: read, written in the base format, and read again.
        """
        num_bytes = self.num_bytes(number_format)
        if number_format == "w8":
            num_bytes += 2 * self.num_bytes("float")
        elif number_format == "w4" and board.target in INT4_TIME:
            return INT4_TIME[board.target] * self.time_ms(board, "float")
        return roofline_ms(board, self.flops, num_bytes, rate=rate_of(number_format))


def item_bytes(number_format: Format, base: Base) -> float:
    """Of one weight, scales left out."""
    is_base = number_format == "float" and base == "float32"
    return ITEM_BYTES["float32" if is_base else number_format]


def layer_bytes(layer: Layer, number_format: Format, base: Base) -> float:
    """Of a layer in an engine's file: weights, scales, and the bias in the base format."""
    bias = layer.has_bias * layer.num_outputs
    is_float32 = number_format == "float32"
    item = ITEM_BYTES["float32"] if is_float32 else item_bytes("float", base)
    return Product.of(layer).num_bytes(number_format, base) + bias * item


def held_bytes(work: Work, rules: Mapping[str, Rule], base: Base) -> float:
    """Of an engine's weights in the formats of a recipe; what lies beside the layers is float32.

    Args:
        rules: of every layer, as `Recipe.decide` finds them.
    """
    layers = sum(layer_bytes(layer, rules[layer.name].format, base) for layer in work.layers)
    return layers + work.beside * ITEM_BYTES["float32"]


def roofline_ms(board: Board, flops: float, num_bytes: float, *, rate: str) -> float:
    """The longer of arithmetic and reading, in milliseconds.

    Args:
        flops: operations, a multiplication and an addition counted as two.
        num_bytes: read from memory.
        rate: the board's figure for this kind of product, see `rate_of`.

    Raises:
        MissingFigureError: the board has no such figure.
    """
    per_s = getattr(board, rate)
    if per_s is None:
        raise MissingFigureError(rate)
    return 1e3 * max(flops / (per_s * 1e12), num_bytes / (board.bandwidth_gb_s * 1e9))


def tick_products(
    groups: Mapping[str, Collection[str]],
    config: PolicyConfig,
    grid: tuple[int, int],
    slots: int,
) -> dict[str, list[Product]]:
    """What a warm tick multiplies, one frame against a kept anchor.

    The frame's `grid` of patches goes through vision, projection and, beside the anchor's, the
    spatial blocks; `slots` tokens through the language model; the modulations of all steps through
    their layers at once; the actions through the head at every step. Left out are attention itself
    and the layers that no recipe quantizes.

    Args:
        groups: names of layers, as `quant.search.sensitivity.group_layers` sorts them.
    """
    found: dict[str, Product] = {}
    works = family_of(config).engines_work(config, grid, Tokens.padded(slots))
    for work in works.values():
        for layer in work.layers:
            # The patch projection serves the frame in one engine and the scale token in another.
            found.setdefault(layer.name, Product.of(layer, work.calls))
    return {group: [found[name] for name in names] for group, names in groups.items()}


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
