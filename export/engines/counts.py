"""FLOPs and bytes of an engine as its file has them: products of the graph, and what is stored.

In: an ONNX file. Out: FLOPs of its matrix products by what they multiply, bytes of its constants
as stored, and bytes of its ports. Shapes are those of ONNX's own inference. Nothing here knows
what a policy is: `models.networks.work` computes the same from a configuration, and each is held
against the other. Only products count: MatMul, Gemm and Conv, which are all that our engines are
written with (`export.engines.products` refuses others). A multiplication and an addition are two
FLOPs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import onnx
from onnx import GraphProto, NodeProto, TensorProto

BITS: dict[int, int] = {
    TensorProto.FLOAT: 32, TensorProto.BFLOAT16: 16, TensorProto.FLOAT16: 16, TensorProto.INT8: 8,
    TensorProto.UINT8: 8, TensorProto.INT4: 4, TensorProto.BOOL: 8, TensorProto.INT32: 32,
    TensorProto.INT64: 64, TensorProto.DOUBLE: 64,
}  # fmt: skip
"""Of one number in a file."""
PRODUCTS = ("MatMul", "Gemm", "Conv")
BETWEEN = {"Cast", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze"}
"""Operators that may stand between a DequantizeLinear and the product that reads it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Counts:
    """Of one call of an engine."""

    float_flops: int
    """Of products with a weight, in floating point."""
    int8_flops: int
    """Of products with a weight whose factors are both int8."""
    attention_flops: int
    """Of products of two activations."""
    weight_bytes: int
    """Of all constants, as stored."""
    port_bytes: int
    """Of inputs and outputs."""

    @property
    def by_weights(self) -> int:
        return self.float_flops + self.int8_flops

    @property
    def flops(self) -> int:
        return self.by_weights + self.attention_flops

    @property
    def num_bytes(self) -> int:
        """What one call reads and writes in memory if nothing between its ports goes there."""
        return self.weight_bytes + self.port_bytes


def count(path: Path) -> Counts:
    """Read a file; its weights are not loaded.

    Raises:
        ValueError: a product of unknown shape, or numbers of an unknown type.
    """
    model = onnx.load(path, load_external_data=False)
    graph = onnx.shape_inference.infer_shapes(model).graph
    shapes = _shapes(graph)
    made = {name: node for node in graph.node for name in node.output}
    moving = _moving(graph)
    flops = {"float": 0, "int8": 0, "attention": 0}
    for node in graph.node:
        if node.op_type in PRODUCTS:
            flops[_kind(node, made, moving)] += _flops(node, shapes, path)
    return Counts(
        float_flops=flops["float"],
        int8_flops=flops["int8"],
        attention_flops=flops["attention"],
        weight_bytes=sum(_num_bytes(t.data_type, t.dims, t.name) for t in graph.initializer),
        port_bytes=sum(
            _num_bytes(v.type.tensor_type.elem_type, shapes[v.name], v.name)
            for v in (*graph.input, *graph.output)
        ),
    )


def _shapes(graph: GraphProto) -> dict[str, list[int]]:
    found = {
        v.name: [side.dim_value for side in v.type.tensor_type.shape.dim]
        for v in (*graph.value_info, *graph.input, *graph.output)
    }
    return found | {t.name: list(t.dims) for t in graph.initializer}


def _moving(graph: GraphProto) -> set[str]:
    """Tensors that an input of the graph reaches; all others are constants, however made."""
    found = {v.name for v in graph.input}
    for node in graph.node:  # in running order
        if not found.isdisjoint(node.input):
            found.update(node.output)
    return found


def _kind(node: NodeProto, made: dict[str, NodeProto], moving: set[str]) -> str:
    factors = node.input[:2]
    if moving.issuperset(factors):
        return "attention"
    return "int8" if all(_is_dequantized(name, made) for name in factors) else "float"


def _is_dequantized(name: str, made: dict[str, NodeProto]) -> bool:
    while name in made and made[name].op_type in BETWEEN:
        name = made[name].input[0]
    return name in made and made[name].op_type == "DequantizeLinear"


def _flops(node: NodeProto, shapes: dict[str, list[int]], path: Path) -> int:
    left, out = shapes.get(node.input[0], []), shapes.get(node.output[0], [])
    if not left or not out or not all((*left, *out)):
        raise ValueError(
            f"{path}: product {node.name or node.output[0]} has no shape that ONNX can infer: "
            f"{left} -> {out}"
        )
    if node.op_type == "Conv":
        return 2 * math.prod(out) * math.prod(shapes[node.input[1]][1:])
    transposed = any(a.name == "transA" and a.i for a in node.attribute)
    return 2 * math.prod(out) * left[-2 if transposed else -1]


def _num_bytes(kind: int, shape: list[int], name: str) -> int:
    if kind not in BITS:
        raise ValueError(
            f"{name!r} holds {TensorProto.DataType.Name(kind)}, of unknown size: add it to BITS"
        )
    return -(-math.prod(shape) * BITS[kind] // 8)
