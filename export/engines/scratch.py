"""How much memory an engine's intermediate results take at once, if a compiler fuses nothing.

A walk over the graph in its order: a tensor lives from the node that makes it to the last one that
reads it. Inputs, outputs and weights have memory of their own, and a reshape needs none; weights
are dequantized inside the product that reads them. A compiler
fuses, which needs less, and may trade memory for speed, which needs more; what a plan really needs
is read from it once it is built.
"""

from __future__ import annotations

from pathlib import Path

import onnx
from onnx import TensorProto

from runtime.declarations import Tensor

DTYPES: dict[int, str] = {
    TensorProto.FLOAT: "float32",
    TensorProto.FLOAT16: "float16",
    TensorProto.BFLOAT16: "bfloat16",
    TensorProto.INT32: "int32",
    TensorProto.INT64: "int64",
}
VIEWS = {"Reshape", "Squeeze", "Unsqueeze", "Identity"}


def unfused_scratch_bytes(path: Path) -> int:
    """Largest sum of bytes of the tensors that live at the same time inside an engine."""
    graph = onnx.load(path, load_external_data=False).graph
    weights = {t.name for t in graph.initializer}
    apart = {v.name for v in (*graph.input, *graph.output)}
    apart |= {
        node.output[0]
        for node in graph.node
        if node.op_type == "DequantizeLinear" and node.input[0] in weights
    }
    sizes = {v.name: _num_bytes(v) for v in graph.value_info}
    owner: dict[str, str] = {}
    for node in graph.node:
        for name in node.output:
            is_view = node.op_type in VIEWS and node.input[0] not in weights
            source = node.input[0] if is_view else name
            owner[name] = owner.get(source, source)
    last = {
        owner.get(name, name): index
        for index, node in enumerate(graph.node)
        for name in (*node.input, *node.output)
    }
    live: dict[str, int] = {}
    peak = 0
    for index, node in enumerate(graph.node):
        for name in node.output:
            if owner[name] == name and name not in apart:
                live[name] = sizes.get(name, 0)
        peak = max(peak, sum(live.values()))
        live = {name: size for name, size in live.items() if last[name] > index}
    return peak


def _num_bytes(value: onnx.ValueInfoProto) -> int:
    kind = value.type.tensor_type
    shape = tuple(side.dim_value for side in kind.shape.dim)
    dtype = DTYPES.get(kind.elem_type, "uint8")  # int8 and bool take a byte too
    return Tensor(shape=shape, dtype=dtype).num_bytes
