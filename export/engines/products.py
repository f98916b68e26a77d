"""Every product with a weight in an engine's file: what the weight is made of, and the input.

In: an ONNX file. Out: its products, each with the precision that it really has, and what is wrong
with it whatever was asked for. The writer's own records are not asked: weights are recognised by
the names of their initializers, formats by the types and the Q/DQ nodes around them. A tensor that
no input of the graph reaches is a constant, however it is made, and a product of one has a weight;
so a copy of a weight finds no place where it is not seen, but in arithmetic that is no product.

Axes: K = inputs, N = outputs.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, numpy_helper

from quant.formats import INT4_BLOCK
from quant.recipes import Base

FLOATS: dict[int, Base] = {
    TensorProto.FLOAT: "float32",
    TensorProto.BFLOAT16: "bfloat16",
    TensorProto.FLOAT16: "float16",
}
CODES: dict[int, str] = {TensorProto.INT8: "w8", TensorProto.INT4: "w4"}
PASSING_OPS = {"Cast", "Transpose", "Reshape", "Identity", "Unsqueeze", "Squeeze", "Expand"}
OTHER_PRODUCTS = {
    "Attention", "ConvInteger", "ConvTranspose", "DeformConv", "Einsum", "GRU", "LSTM",
    "MatMulInteger", "QLinearConv", "QLinearMatMul", "RNN",
}  # fmt: skip
"""They add up products of weights too, and no engine of ours is written with them."""


@dataclass(frozen=True, slots=True)
class Precision:
    """Of one product with a weight."""

    format: str
    """float32, bfloat16, float16, w8, w8a8, w4."""
    base: str
    """What it is computed in where it is not integers."""

    def __str__(self) -> str:
        return self.format if self.format == self.base else f"{self.format} in {self.base}"


@dataclass(frozen=True, slots=True)
class Product:
    """A product with a weight."""

    weight: str
    """Name of its initializer."""
    shape: tuple[int, ...]
    precision: Precision
    faults: tuple[str, ...] = ()
    """What no recipe asks for."""


@dataclass(frozen=True, slots=True)
class Contents:
    """Of a file."""

    products: tuple[Product, ...]
    faults: tuple[str, ...] = ()
    """Beside its products."""


def read_contents(path: Path) -> Contents:
    """All products with a weight, and what else in the file would falsify them."""
    file = _File(path)
    products = tuple(p for node in file.graph.node if (p := file.product(node)) is not None)
    return Contents(products, tuple(file.faults()))


class _File:
    def __init__(self, path: Path) -> None:
        self.folder = str(path.parent)
        self.graph = onnx.load(path, load_external_data=False).graph
        self.made = {name: node for node in self.graph.node for name in node.output}
        self.constants = {t.name: t for t in self.graph.initializer}
        self.moving = {v.name for v in self.graph.input}
        for node in self.graph.node:
            if not self.moving.isdisjoint(node.input):
                self.moving.update(node.output)
        self.used = self._used()
        self.dequantizers: set[str] = set()
        """Outputs of those that belong to a product."""

    def product(self, node: NodeProto) -> Product | None:
        """None for one of two activations, and for other operators."""
        if node.op_type not in ("MatMul", "Gemm", "Conv"):
            return None
        index = next((i for i in (1, 0) if node.input[i] not in self.moving), None)
        if index is None:
            return None
        source, between = self._source(node.input[index])
        faults = [] if node.output[0] in self.used else ["no output depends on it"]
        for name in ("alpha", "beta"):
            if (factor := _attribute(node, name, 1.0)) != 1:
                faults.append(f"it is multiplied by {name} = {factor:g}")
        quantizer = self._dequantizer(node.input[1 - index])
        if quantizer is not None:
            self.dequantizers.add(quantizer.output[0])
        if source not in self.constants:
            faults.append(f"its weight is computed by a {self.made[source].op_type}")
            return Product(source, (), Precision("unknown", "unknown"), tuple(faults))
        weight = self.constants[source]
        shape = tuple(weight.dims)
        operators = [other.op_type for other in between]
        if "DequantizeLinear" not in operators:
            base = FLOATS.get(weight.data_type, "unknown")
            if "Cast" in operators:
                faults.append("its weight is cast on the way")
            if quantizer is not None:
                faults.append("its input is rounded to int8, and its weight is not")
            return Product(source, shape, Precision(base, base), tuple(faults))
        if operators != ["DequantizeLinear"]:
            faults.append(f"between its codes and the product stand {', '.join(operators)}")
        if index == 0 or _attribute(node, "transB", 0):
            faults.append("its codes are not the second factor as they are, [K, N]")
        dequantizer = between[operators.index("DequantizeLinear")]
        self.dequantizers.add(dequantizer.output[0])
        faults += self._weight_faults(weight, dequantizer)
        scales = self.constants.get(dequantizer.input[1])
        base = "unknown" if scales is None else FLOATS.get(scales.data_type, "unknown")
        codes = CODES.get(weight.data_type, TensorProto.DataType.Name(weight.data_type).lower())
        if quantizer is not None:
            codes += "a8"
            faults += self._input_faults(quantizer)
        return Product(source, shape, Precision(codes, base), tuple(faults))

    def faults(self) -> list[str]:
        """After all products were read."""
        found = []
        for node in self.graph.node:
            where = node.name or node.output[0]
            if node.op_type in OTHER_PRODUCTS or node.domain not in ("", "ai.onnx"):
                found.append(f"{where} is a {node.op_type}, which this audit cannot read")
            elif node.op_type == "Conv" and node.input[1] in self.moving:
                found.append(f"{where} is a Conv whose weight is computed")
            elif node.op_type == "Mul":
                sources = [self._source(name)[0] for name in node.input]
                zeros = [n for n in sources if n in self.constants and not self._values(n).any()]
                found += [f"{where} multiplies by {name!r}, which is 0" for name in zeros]
            elif node.op_type == "DequantizeLinear" and node.output[0] not in self.dequantizers:
                source = self._source(node.output[0])[0]
                found.append(f"{source!r} is dequantized, and for no product with a weight")
        return found

    def _weight_faults(self, codes: TensorProto, dequantizer: NodeProto) -> list[str]:
        """One scale for each output, in each block of int4; all of them positive, no zero point."""
        faults = self._zero_point_faults("its weight", dequantizer, TensorProto.INT8)
        scales = self.constants.get(dequantizer.input[1])
        if scales is None:
            return [*faults, "its scales are no constants"]
        is_int4 = codes.data_type == TensorProto.INT4
        rows = [codes.dims[0] // INT4_BLOCK] if is_int4 else []
        want = [*rows, *codes.dims[1:]], 0 if is_int4 else 1, INT4_BLOCK if is_int4 else 0
        dims, block = list(scales.dims), _attribute(dequantizer, "block_size", 0)
        got = dims, _attribute(dequantizer, "axis", 1), block
        if got != want:
            faults.append(
                f"its scales are {dims} along axis {got[1]} in blocks of {block or 1}, expected "
                f"{want[0]} along axis {want[1]} in blocks of {want[2] or 1}: one for each output"
            )
        return [*faults, *self._scale_faults("a scale of its weight", scales.name)]

    def _input_faults(self, dequantizer: NodeProto) -> list[str]:
        """A Q and its DQ with one scale, the same, and zero points of 0."""
        quantizer = self.made.get(dequantizer.input[0])
        if quantizer is None or quantizer.op_type != "QuantizeLinear":
            return ["its input is dequantized, and was not quantized"]
        faults = []
        pair = []
        for node, letters in ((quantizer, "Q"), (dequantizer, "DQ")):
            what = f"the {letters} of its input"
            faults += self._zero_point_faults(
                what, node, TensorProto.INT8, needed=node is quantizer
            )
            if node.input[1] not in self.constants:
                return [*faults, f"{what} has no constant scale"]
            scale = self._values(node.input[1])
            if scale.size != 1:
                return [*faults, f"{what} has {scale.size} scales, expected one"]
            faults += self._scale_faults(f"the scale of {what}", node.input[1])
            pair.append(scale.ravel()[0])
        if pair[0] != pair[1]:
            faults.append(f"its input is quantized by {pair[0]:g} and dequantized by {pair[1]:g}")
        return faults

    def _zero_point_faults(
        self, what: str, node: NodeProto, kind: int, *, needed: bool = False
    ) -> list[str]:
        name = node.input[2] if len(node.input) > 2 else ""
        if not name:
            return [f"{what} has no int8 zero point, so codes are unsigned"] if needed else []
        if name not in self.constants:
            return [f"{what} has a zero point that is no constant"]
        if self._values(name).any():
            return [f"{what} has a zero point that is not 0"]
        if self.constants[name].data_type != kind:
            return [f"{what} has codes that are not int8"]
        return []

    def _scale_faults(self, what: str, name: str) -> list[str]:
        values = self._values(name).astype(np.float32)
        right = (values > 0) & np.isfinite(values)
        return [] if right.all() else [f"{what} is {values[~right].ravel()[0]:g}, not positive"]

    def _source(self, name: str) -> tuple[str, list[NodeProto]]:
        """The tensor behind operators that pass numbers on, and these, the last first."""
        between = []
        while name in self.made:
            node = self.made[name]
            if node.op_type not in {*PASSING_OPS, "DequantizeLinear"}:
                break
            between.append(node)
            name = node.input[0]
        return name, between

    def _dequantizer(self, name: str) -> NodeProto | None:
        _, between = self._source(name)
        return next((node for node in between if node.op_type == "DequantizeLinear"), None)

    def _used(self) -> set[str]:
        """Tensors that an output of the graph depends on."""
        used: set[str] = {v.name for v in self.graph.output}
        for node in reversed(self.graph.node):
            if not used.isdisjoint(node.output):
                used.update(node.input)
        return used

    def _values(self, name: str) -> NDArray[Any]:
        return numpy_helper.to_array(self.constants[name], base_dir=self.folder)


def _attribute(node: NodeProto, name: str, default: float) -> Any:
    found = (onnx.helper.get_attribute_value(a) for a in node.attribute if a.name == name)
    return next(found, default)
