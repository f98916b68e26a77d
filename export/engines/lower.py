"""A float32 graph lowered to bfloat16 or float16, written out with casts; and its float32 twin.

Strong typing is what a TensorRT network follows, so every type stands in the file and a float32
island survives. Ports keep their float32: what the graph hands from engine to engine is a few
megabytes, and caches, buffers and golden data need no second format.

ONNX Runtime has no bfloat16 arithmetic on a CPU. `twin` is the same graph that computes in float32
and rounds the result of every operation: what a device does that accumulates in float32.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper
from torch import nn

from export.engines.onnx_file import scope_of, skeleton
from models.networks.layers import RMSNorm
from quant.formats import round_to_bfloat16, round_to_float16

TYPES = {"bfloat16": TensorProto.BFLOAT16, "float16": TensorProto.FLOAT16}
FLOAT32_OPS = {"LayerNormalization", "Softmax", "Sigmoid", "Erf", "Tanh"}
FLOAT32_FUNCTIONS = ("gelu", "silu")
"""Named by the exporter, which takes them apart. Their pieces are cheap, fuse with casts, and lose
much by rounding."""
MOVING_OPS = {
    "Concat", "Expand", "Gather", "Identity", "Pad", "Reshape", "Slice", "Split", "Squeeze", "Tile",
    "Transpose", "Unsqueeze",
}  # fmt: skip
"""They only move numbers."""


def float32_nodes(
    model: onnx.ModelProto,
    module: nn.Module,
    *,
    modules: Collection[str],
    tensors: Collection[str],
    softmax: str = "float32",
) -> set[str]:
    """Outputs of the nodes that stay float32, by the module they come from.

    Args:
        model: as the exporter wrote it, scopes included.
        module: what was exported.
        modules: paths in `module` of what stays float32, but for the layers inside of it.
        tensors: that would leave the base format's range.
        softmax: `float32`, or `base` for attention without casts between its two products.
    """
    operations = FLOAT32_OPS if softmax == "float32" else FLOAT32_OPS - {"Softmax"}
    norms = {n for n, m in module.named_modules() if isinstance(m, RMSNorm)}
    whole = {"", *norms, *modules}
    ports = {value.name for value in model.graph.input}
    kept: set[str] = set()
    for node in model.graph.node:
        path, function = scope_of(node)
        if path is None:  # made by the exporter's optimizer, out of one that moves numbers
            stays = node.input[0] in kept or node.input[0] in ports
        else:
            stays = (
                path in whole
                or node.op_type in operations
                or function.startswith(FLOAT32_FUNCTIONS)
            )
        if stays or not {*node.input, *node.output}.isdisjoint(tensors):
            kept.update(node.output)
    return kept


def modules_beside(model: onnx.ModelProto, tensors: Collection[str]) -> set[str]:
    """Paths of the modules that read or make one of these tensors."""
    beside = (n for n in model.graph.node if not {*n.input, *n.output}.isdisjoint(tensors))
    return {path for node in beside if (path := scope_of(node)[0]) is not None}


def lower(model: onnx.ModelProto, base: str, kept: Collection[str], opset: int) -> None:
    """Rewrite `model` in place: everything in `base`, but nodes with an output in `kept`.

    Raises:
        ValueError: a weight leaves the range of `base`.
    """
    _Lowering(model, base).run(kept)
    for entry in model.opset_import:
        if not entry.domain:
            entry.version = max(entry.version, opset)
    onnx.checker.check_model(skeleton(model))


def twin(model: onnx.ModelProto) -> onnx.ModelProto:
    """The graph in float32, each operation's result rounded to the type that it had."""
    result = onnx.ModelProto()
    result.CopyFrom(model)
    graph = result.graph
    low = {v.name: v.type.tensor_type.elem_type for v in graph.value_info}
    low = {name: kind for name, kind in low.items() if kind in TYPES.values()}
    for tensor in graph.initializer:
        if tensor.data_type in TYPES.values():
            values = numpy_helper.to_array(tensor).astype(np.float32)
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    for value in graph.value_info:
        if value.name in low:
            value.type.tensor_type.elem_type = TensorProto.FLOAT
    nodes = []
    for node in graph.node:
        nodes.append(node)
        if node.op_type == "Cast" and node.attribute[0].i in TYPES.values():
            node.attribute[0].i = TensorProto.FLOAT
        elif node.op_type in {*MOVING_OPS, "DequantizeLinear"}:
            continue
        for index, name in enumerate(node.output):
            if name in low:
                node.output[index] = f"{name}/exact"
                nodes += _rounding(f"{name}/exact", name, low[name])
    _replace(graph.node, nodes)
    return result


def _rounding(name: str, result: str, kind: int) -> list[NodeProto]:
    return [
        helper.make_node("Cast", [name], [f"{result}/rounded"], to=kind),
        helper.make_node("Cast", [f"{result}/rounded"], [result], to=TensorProto.FLOAT),
    ]


class _Lowering:
    def __init__(self, model: onnx.ModelProto, base: str) -> None:
        self.graph, self.kind = model.graph, TYPES[base]
        self.round: Callable[..., np.ndarray] = {
            "bfloat16": round_to_bfloat16, "float16": round_to_float16
        }[base]  # fmt: skip
        self.constants = {t.name: t for t in self.graph.initializer}
        infos = onnx.shape_inference.infer_shapes(skeleton(model), data_prop=False).graph
        self.values = {v.name: v for v in (*infos.value_info, *infos.input, *infos.output)}
        self.is_low: dict[str, bool] = {}
        self.casts: dict[tuple[str, bool], str] = {}
        self.lowered: dict[str, str] = {}
        self.nodes: list[NodeProto] = []

    def run(self, kept: Collection[str]) -> None:
        for node in list(self.graph.node):
            low = node.output[0] not in kept
            for index, name in enumerate(node.input):
                if name and self._is_float(name):
                    node.input[index] = self._as(name, low)
            self.nodes.append(node)
            for name in node.output:
                if self._is_float(name):
                    self.is_low[name] = low
        for output in self.graph.output:
            if self.is_low.get(output.name):
                self._restore(output.name)
        _replace(self.graph.node, self.nodes)
        self._replace_constants({name for node in self.nodes for name in node.input})
        outputs = {v.name for v in (*self.graph.input, *self.graph.output)}
        _replace(self.graph.value_info, self._value_infos(outputs))

    def _replace_constants(self, used: Collection[str]) -> None:
        """In place: together they may be as large as the memory."""
        field = self.graph.initializer
        present = {tensor.name for tensor in field}
        for index in reversed(range(len(field))):
            if field[index].name not in used:
                del field[index]
        field.extend(
            self.constants[name] for name in sorted(self.constants.keys() & set(used) - present)
        )

    def _is_float(self, name: str) -> bool:
        if name in self.constants:
            return self.constants[name].data_type in (TensorProto.FLOAT, self.kind)
        if name not in self.values:
            raise ValueError(f"tensor {name!r} has no type in the exported graph")
        return self.values[name].type.tensor_type.elem_type == TensorProto.FLOAT

    def _as(self, name: str, low: bool) -> str:
        """The name of this tensor in the wanted type."""
        if name in self.constants:
            return self._constant(name) if low else name
        if self.is_low.get(name, False) == low:
            return name
        if (name, low) not in self.casts:
            result = f"{name}/{'low' if low else 'float'}"
            to = self.kind if low else TensorProto.FLOAT
            self.nodes.append(helper.make_node("Cast", [name], [result], to=to))
            self.casts[name, low] = result
            self.is_low[result] = low
            info = onnx.ValueInfoProto()
            info.CopyFrom(self.values[name])
            info.name = result
            self.values[result] = info
        return self.casts[name, low]

    def _constant(self, name: str) -> str:
        """A rounded copy; the float32 one goes where nothing uses it any more."""
        if name not in self.lowered:
            tensor = self.constants[name]
            if tensor.data_type != TensorProto.FLOAT:
                return name
            try:
                values = self.round(numpy_helper.to_array(tensor))
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from None
            kind = helper.tensor_dtype_to_np_dtype(self.kind)
            copy = numpy_helper.from_array(values.astype(kind), f"{name}/low")
            self.constants[copy.name] = copy
            self.lowered[name] = copy.name
        return self.lowered[name]

    def _restore(self, output: str) -> None:
        """A port keeps its name and float32."""
        inner = f"{output}/low"
        for node in self.nodes:
            for names in (node.input, node.output):
                for index, name in enumerate(names):
                    if name == output:
                        names[index] = inner
        info = onnx.ValueInfoProto()
        info.CopyFrom(self.values[output])
        info.name = inner
        self.values[inner] = info
        self.is_low[inner] = True
        self.nodes.append(helper.make_node("Cast", [inner], [output], to=TensorProto.FLOAT))

    def _value_infos(self, ports: Collection[str]) -> list[onnx.ValueInfoProto]:
        made = [name for node in self.nodes for name in node.output if name not in ports]
        infos = [self.values[name] for name in made if name in self.values]
        for info in infos:
            if self.is_low.get(info.name):
                info.type.tensor_type.elem_type = self.kind
        return infos


def _replace(field: object, items: Iterable[object]) -> None:
    """A repeated protobuf field gets other content, which may be part of its present one."""
    items = list(items)
    copies = []
    for item in items:
        copy = type(item)()
        copy.CopyFrom(item)  # type: ignore[attr-defined]
        copies.append(copy)
    del field[:]  # type: ignore[attr-defined]
    field.extend(copies)  # type: ignore[attr-defined]
