"""An ONNX file computed by torch, node by node, in the types that the file says.

Only what this project's engines hold. int8 and int4 products are computed on dequantized factors,
as ONNX defines them.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor
from torch.nn import functional

TYPES = {
    TensorProto.FLOAT: torch.float32,
    TensorProto.FLOAT16: torch.float16,
    TensorProto.BFLOAT16: torch.bfloat16,
    TensorProto.INT8: torch.int8,
    TensorProto.INT4: torch.int8,
    TensorProto.INT32: torch.int32,
    TensorProto.INT64: torch.int64,
    TensorProto.UINT8: torch.uint8,
    TensorProto.BOOL: torch.bool,
}
"""int4 codes lie in bytes."""


class TorchGraph:
    """The graph of a file, its weights on `device`.

    Args:
        path: of a file whose shapes are all static.

    Raises:
        ValueError: an operator that nothing here computes.
    """

    def __init__(self, path: Path, device: str) -> None:
        graph = onnx.load(path).graph
        if unknown := sorted({node.op_type for node in graph.node} - OPERATORS.keys()):
            raise ValueError(f"{path}: no operator {unknown}; there are {sorted(OPERATORS)}")
        self.constants = {p.name: _tensor(p).to(device) for p in graph.initializer}
        self.lists = {
            p.name: numpy_helper.to_array(p).reshape(-1).tolist()
            for p in graph.initializer
            if p.data_type == TensorProto.INT64
        }
        """Shapes, axes and the like, which torch takes from the host."""
        self.nodes = [
            (
                OPERATORS[node.op_type],
                {a.name: helper.get_attribute_value(a) for a in node.attribute},
                list(node.input),
                list(node.output),
            )
            for node in graph.node
        ]
        self.inputs = {port.name: _port(port) for port in graph.input}
        self.outputs = {port.name: _port(port) for port in graph.output}

    def __call__(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The outputs, by name."""
        known: dict[str, Tensor] = {**self.constants, **inputs}
        for operator, attributes, taken, made in self.nodes:
            given = [known.get(name) for name in taken]
            lists = [self.lists.get(name) for name in taken]
            results = operator(attributes, given, lists, len(made))
            known.update(zip(made, results, strict=True))
        return {name: known[name] for name in self.outputs}


Port = tuple[tuple[int, ...], torch.dtype]


def _port(port: onnx.ValueInfoProto) -> Port:
    kind = port.type.tensor_type
    return tuple(d.dim_value for d in kind.shape.dim), TYPES[kind.elem_type]


def _tensor(proto: onnx.TensorProto) -> Tensor:
    array = numpy_helper.to_array(proto)
    if proto.data_type == TensorProto.BFLOAT16:
        return torch.from_numpy(array.view(np.uint16).copy()).view(torch.bfloat16)
    if proto.data_type == TensorProto.INT4:
        array = array.astype(np.int8)
    return torch.from_numpy(np.array(array))


Attributes = Mapping[str, Any]
Given = Sequence[Any]
"""Tensors; None for an input that is left out."""
Lists = Sequence[Any]
"""The same as lists of whole numbers, where they are constants."""
Operator = Callable[[Attributes, Given, Lists, int], Sequence[Tensor]]


def _plain(function: Callable[..., Tensor]) -> Operator:
    """Of tensors alone."""
    return lambda attributes, given, lists, count: [function(*given)]


def _gemm(attributes: Attributes, given: Given, lists: Lists, count: int) -> list[Tensor]:
    a, b, *c = given
    a = a.T if attributes.get("transA", 0) else a
    b = b.T if attributes.get("transB", 0) else b
    product = attributes.get("alpha", 1.0) * (a @ b)
    return [product + attributes.get("beta", 1.0) * c[0] if c else product]


def _axes(attributes: Attributes, lists: Lists) -> list[int]:
    return list(lists[1] if len(lists) > 1 else attributes["axes"])


def _reduce(function: Callable[..., Tensor]) -> Operator:
    return lambda attributes, given, lists, count: [
        function(given[0], dim=_axes(attributes, lists), keepdim=bool(attributes["keepdims"]))
    ]


def _reshape(attributes: Attributes, given: Given, lists: Lists, count: int) -> list[Tensor]:
    return [given[0].reshape(lists[1])]


def _gather(attributes: Attributes, given: Given, lists: Lists, count: int) -> list[Tensor]:
    source, rows = given
    axis = attributes.get("axis", 0) % source.ndim
    picked = source.index_select(axis, rows.reshape(-1) % source.shape[axis])
    return [picked.reshape(*source.shape[:axis], *rows.shape, *source.shape[axis + 1 :])]


def _split(attributes: Attributes, given: Given, lists: Lists, count: int) -> Sequence[Tensor]:
    axis = attributes.get("axis", 0)
    if len(given) > 1:
        return given[0].split(lists[1], axis)
    return given[0].split(-(-given[0].shape[axis] // count), axis)


def _slice(attributes: Attributes, given: Given, lists: Lists, count: int) -> list[Tensor]:
    _, starts, stops, axes, *steps = lists
    result = given[0]
    for number, (start, stop, axis) in enumerate(zip(starts, stops, axes, strict=True)):
        part = slice(start, stop, steps[0][number] if steps else 1)
        result = result[(slice(None),) * (axis % result.ndim) + (part,)]
    return [result]


def _layer_norm(attributes: Attributes, given: Given, lists: Lists, count: int) -> list[Tensor]:
    source, scale, *bias = given
    shape = source.shape[attributes.get("axis", -1) :]
    return [functional.layer_norm(source, shape, scale, *bias, eps=attributes["epsilon"])]


def _blocks(scale: Tensor, source: Tensor, attributes: Attributes) -> Tensor:
    """The scale of every element of `source`."""
    axis = attributes.get("axis", 1)
    if size := attributes.get("block_size", 0):
        spread = scale.repeat_interleave(size, axis)
        return spread.narrow(axis, 0, source.shape[axis])
    if scale.ndim == 0 or scale.numel() == 1:
        return scale.reshape(())
    return scale.reshape([-1 if i == axis % source.ndim else 1 for i in range(source.ndim)])


def _dequantize(attributes: Attributes, given: Given, lists: Lists, count: int) -> list[Tensor]:
    source, scale, *zero = given
    if zero and zero[0] is not None:
        source = source.to(torch.int32) - _blocks(zero[0], source, attributes).to(torch.int32)
    return [source.to(scale.dtype) * _blocks(scale, source, attributes)]


def _quantize(attributes: Attributes, given: Given, lists: Lists, count: int) -> list[Tensor]:
    source, scale, *zero = given
    codes = torch.round(source.float() / _blocks(scale, source, attributes).float())
    if zero and zero[0] is not None:
        codes = codes + _blocks(zero[0], source, attributes).float()
    return [codes.clamp(-128, 127).to(torch.int8)]


def _cast(attributes: Attributes, given: Given, lists: Lists, count: int) -> list[Tensor]:
    return [given[0].to(TYPES[attributes["to"]])]


def _squeeze(attributes: Attributes, given: Given, lists: Lists, count: int) -> list[Tensor]:
    return [given[0].squeeze(tuple(lists[1])) if len(lists) > 1 else given[0].squeeze()]


def _unsqueeze(attributes: Attributes, given: Given, lists: Lists, count: int) -> list[Tensor]:
    result = given[0]
    rank = result.ndim + len(lists[1])
    for axis in sorted(axis % rank for axis in lists[1]):
        result = result.unsqueeze(axis)
    return [result]


def _expand(attributes: Attributes, given: Given, lists: Lists, count: int) -> list[Tensor]:
    shape = torch.broadcast_shapes(tuple(given[0].shape), tuple(lists[1]))
    return [given[0].expand(shape)]


def _clip(attributes: Attributes, given: Given, lists: Lists, count: int) -> list[Tensor]:
    low, high = (*given[1:], None, None)[:2]
    return [given[0].clamp(low, high)]


OPERATORS: dict[str, Operator] = {
    "Add": _plain(torch.add),
    "Sub": _plain(torch.sub),
    "Mul": _plain(torch.mul),
    "Div": _plain(torch.div),
    "Pow": _plain(torch.pow),
    "Neg": _plain(torch.neg),
    "Sqrt": _plain(torch.sqrt),
    "Erf": _plain(torch.erf),
    "Tanh": _plain(torch.tanh),
    "Relu": _plain(torch.relu),
    "Sigmoid": _plain(torch.sigmoid),
    "MatMul": _plain(torch.matmul),
    "Gelu": lambda a, g, lists, n: [
        functional.gelu(g[0], approximate=a.get("approximate", b"none").decode())
    ],
    "Gemm": _gemm,
    "ReduceMean": _reduce(torch.mean),
    "ReduceSum": _reduce(torch.sum),
    "Softmax": lambda a, g, lists, n: [torch.softmax(g[0], a.get("axis", -1))],
    "LayerNormalization": _layer_norm,
    "Reshape": _reshape,
    "Transpose": lambda a, g, lists, n: [g[0].permute(*a["perm"])],
    "Gather": _gather,
    "Concat": lambda a, g, lists, n: [torch.cat(list(g), a["axis"])],
    "Split": _split,
    "Slice": _slice,
    "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze,
    "Expand": _expand,
    "Tile": lambda a, g, lists, n: [g[0].tile(tuple(lists[1]))],
    "Clip": _clip,
    "Cast": _cast,
    "DequantizeLinear": _dequantize,
    "QuantizeLinear": _quantize,
}


@functools.lru_cache(maxsize=16)
def graph_of(path: Path, changed_ns: int, device: str) -> TorchGraph:
    """Made once for a file, however often its plan is deserialized."""
    return TorchGraph(path, device)
