"""What layers that share an input need once: the rounding of it, and one product for all of them.

In: the float32 graph of an engine, as traced. Out: the same graph with fewer nodes. Layers are
traced one by one, each with its own QuantizeLinear; where they read one tensor with one step, all
but the first are copies. Then products of one int8 tensor with int8 weights become one product with
the weights side by side, and a Split hands the outputs on: every output column is a sum of its own,
so all numbers stay what they were. Graphs without a QuantizeLinear are left as they are.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper, numpy_helper

SMALL_BYTES = 1 << 16
"""Larger constants are weights, and no two of them are the same."""
TRACED = "traced_nodes"
JOINT = "+"
"""Between the layers in the name of a joined weight."""


def share_inputs(model: onnx.ModelProto) -> None:
    """Rewrite `model` in place; it remembers how many nodes it had (`nodes_of`)."""
    graph = model.graph
    if not any(node.op_type == "QuantizeLinear" for node in graph.node):
        return
    model.metadata_props.add(key=TRACED, value=str(len(graph.node)))
    _merge_copies(graph)
    _join_products(graph)


def nodes_of(model: onnx.ModelProto) -> tuple[int, int] | None:
    """Nodes as traced and now; None where nothing could be shared."""
    traced = next((entry.value for entry in model.metadata_props if entry.key == TRACED), None)
    return None if traced is None else (int(traced), len(model.graph.node))


def layers_of(weight: str) -> list[str]:
    """The layers whose weights lie in one initializer, by its name without the last part."""
    return weight.split(JOINT)


def _merge_copies(graph: onnx.GraphProto) -> None:
    """Nodes that do the same with the same tensors and constants become the first of them."""
    same = _equal_constants(graph)
    first: dict[tuple[object, ...], NodeProto] = {}
    kept = []
    for node in graph.node:
        node.input[:] = [same.get(name, name) for name in node.input]
        attributes = sorted(a.SerializeToString() for a in node.attribute)
        key = (node.op_type, node.domain, len(node.output), *attributes, None, *node.input)
        before = first.setdefault(key, node)
        outputs = {value.name for value in graph.output}
        if before is node or not outputs.isdisjoint(node.output):
            kept.append(node)
            continue
        same |= dict(zip(node.output, before.output, strict=True))
    _keep_nodes(graph, kept)


def _equal_constants(graph: onnx.GraphProto) -> dict[str, str]:
    """Name of a constant -> the first with the same type, shape and bytes."""
    first: dict[tuple[object, ...], str] = {}
    same = {}
    for tensor in graph.initializer:
        if tensor.ByteSize() > SMALL_BYTES:
            continue
        digest = hashlib.sha256(numpy_helper.to_array(tensor).tobytes()).digest()
        name = first.setdefault((tensor.data_type, *tensor.dims, digest), tensor.name)
        if name != tensor.name:
            same[tensor.name] = name
    return same


@dataclass(frozen=True, slots=True)
class _Product:
    """x [.., K] times the codes of a layer, and its bias."""

    multiply: NodeProto
    dequantize: NodeProto
    add: NodeProto | None

    @property
    def last(self) -> NodeProto:
        return self.multiply if self.add is None else self.add


def _join_products(graph: onnx.GraphProto) -> None:
    groups = [group for group in _groups(graph) if len(group) > 1]
    constants = {tensor.name: tensor for tensor in graph.initializer}
    put: dict[str, list[NodeProto]] = {}
    gone: set[str] = set()
    for group in groups:
        nodes = [n for p in group for n in (p.multiply, p.dequantize, p.add) if n is not None]
        gone |= {node.output[0] for node in nodes}
        put[group[0].multiply.output[0]] = _joined(graph, constants, group)
    kept: list[NodeProto] = []
    for node in graph.node:
        kept += put.get(node.output[0], [])
        if node.output[0] not in gone:
            kept.append(node)
    _keep_nodes(graph, kept)


def _groups(graph: onnx.GraphProto) -> list[list[_Product]]:
    """Products by the int8 tensor that they multiply, and by whether all have a bias."""
    made = {name: node for node in graph.node for name in node.output}
    readers: dict[str, list[NodeProto]] = defaultdict(list)
    for node in graph.node:
        for name in node.input:
            readers[name].append(node)
    constants = {tensor.name: tensor for tensor in graph.initializer}
    ports = {value.name for value in graph.output}
    groups: dict[tuple[str, bool], list[_Product]] = defaultdict(list)
    for node in graph.node:
        if node.op_type != "MatMul" or not {"DequantizeLinear"}.issuperset(
            getattr(made.get(name), "op_type", "") for name in node.input
        ):
            continue
        weight = made[node.input[1]]
        codes, scales = (constants.get(name) for name in weight.input[:2])
        if codes is None or scales is None or codes.data_type != TensorProto.INT8:
            continue
        if len(scales.dims) != 1 or len(readers[weight.output[0]]) != 1:
            continue
        add = _bias_of(node, readers, constants, ports)
        groups[node.input[0], add is not None].append(_Product(node, weight, add))
    return list(groups.values())


def _bias_of(
    multiply: NodeProto,
    readers: dict[str, list[NodeProto]],
    constants: dict[str, TensorProto],
    ports: set[str],
) -> NodeProto | None:
    """What adds a constant of one number per output to a product, and nothing else reads that."""
    out = multiply.output[0]
    if out in ports or len(readers[out]) != 1 or readers[out][0].op_type != "Add":
        return None
    add = readers[out][0]
    other = next(name for name in add.input if name != out)
    return add if other in constants and len(constants[other].dims) == 1 else None


def _joined(
    graph: onnx.GraphProto, constants: dict[str, TensorProto], group: Sequence[_Product]
) -> list[NodeProto]:
    """One product in place of a group, in its order."""

    def constant(name: str, values: NDArray[np.generic]) -> str:
        graph.initializer.append(numpy_helper.from_array(values, name))
        return name

    def side_by_side(names: Sequence[str]) -> NDArray[np.generic]:
        return np.concatenate([numpy_helper.to_array(constants[name]) for name in names], axis=-1)

    codes = [product.dequantize.input[0] for product in group]
    layers = JOINT.join(name.removesuffix(".codes") for name in codes)
    weight = _copy(group[0].dequantize, [f"{layers}.weight"])
    weight.input[0] = constant(f"{layers}.codes", side_by_side(codes))
    scales = side_by_side([product.dequantize.input[1] for product in group])
    weight.input[1] = constant(f"{layers}.scales", scales)
    multiply = _copy(group[0].multiply, [f"{layers}/product"])
    multiply.input[1] = weight.output[0]
    nodes = [weight, multiply]
    if group[0].add is not None:
        biases = [next(name for name in p.add.input if name in constants) for p in group if p.add]
        add = _copy(group[0].add, [f"{layers}/sum"])
        add.input[:] = [multiply.output[0], constant(f"{layers}.bias", side_by_side(biases))]
        nodes.append(add)
    widths = [constants[name].dims[1] for name in codes]
    sizes = constant(f"{layers}/widths", np.array(widths, np.int64))
    outputs = [product.last.output[0] for product in group]
    split = helper.make_node("Split", [nodes[-1].output[0], sizes], outputs, axis=-1)
    _describe(graph, nodes, sum(widths), group[0])
    return [*nodes, split]


def _describe(
    graph: onnx.GraphProto, nodes: Sequence[NodeProto], width: int, like: _Product
) -> None:
    """Type and shape of what `nodes` make: as the first product's, but so wide."""
    known = {value.name: value for value in graph.value_info}
    originals = [like.dequantize, like.multiply, *([] if like.add is None else [like.add])]
    for node, original in zip(nodes, originals, strict=True):
        if (value := known.get(original.output[0])) is not None:
            made = onnx.ValueInfoProto()
            made.CopyFrom(value)
            made.name = node.output[0]
            made.type.tensor_type.shape.dim[-1].dim_value = width
            graph.value_info.append(made)


def _copy(node: NodeProto, outputs: Sequence[str]) -> NodeProto:
    made = NodeProto()
    made.CopyFrom(node)
    made.output[:] = outputs
    return made


def _keep_nodes(graph: onnx.GraphProto, kept: Sequence[NodeProto]) -> None:
    """These nodes in this order, the constants that they read, and what they make."""
    copies = [_copy(node, node.output) for node in kept]
    del graph.node[:]
    graph.node.extend(copies)
    read = {name for node in copies for name in node.input} | {v.name for v in graph.output}
    made_here = {name for node in copies for name in node.output}
    for field, used in ((graph.initializer, read), (graph.value_info, made_here)):
        for index in reversed(range(len(field))):
            if field[index].name not in used:
                del field[index]
