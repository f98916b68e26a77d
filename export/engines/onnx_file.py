"""One engine -> one ONNX file with its weights beside it."""

from __future__ import annotations

import ast
import contextlib
import io
import logging
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxscript
import torch
from onnx.external_data_helper import convert_model_to_external_data
from torch import nn

import quant.modules  # noqa: F401  (registers the operators)
from export.engines.join import share_inputs
from models.networks.engines import EngineSpec

IR_VERSION = 10
"""The newest that ONNX Runtime 1.23 and TensorRT 10.3 both read; helpers write newer ones."""
FORMAT_PARTS = (".scales", ".activation_scale", ".input_factor", ".token_floor", ".kept")
INLINE_BYTES = 1024
"""Smaller weights stay in the graph file."""


@dataclass(frozen=True, slots=True)
class OnnxFile:
    """What was written."""

    path: Path
    parameters: int
    """Numbers in the initializers, but for what belongs to a number format."""
    num_bytes: int
    """Graph and weights together."""

    @property
    def files(self) -> tuple[Path, ...]:
        weights = weights_path(self.path)
        return (self.path, weights) if weights.exists() else (self.path,)


def weights_path(path: Path) -> Path:
    return path.with_suffix(".weights")


def write_onnx(spec: EngineSpec, path: Path, *, opset: int) -> OnnxFile:
    """Export the module of `spec` into a file, in float32 where it is not quantized.

    Raises:
        torch.onnx.OnnxExporterError: the module cannot be exported.
    """
    return save(export_graph(spec, opset=opset), path)


def export_graph(spec: EngineSpec, *, opset: int) -> onnx.ModelProto:
    """Trace the module of `spec` with its port names and fixed shapes.

    Returns:
        The graph; its nodes still name the modules that they come from.

    Raises:
        torch.onnx.OnnxExporterError: the module cannot be exported.
    """
    arguments = tuple(
        torch.zeros(t.shape, dtype=getattr(torch, t.dtype)) for t in spec.inputs.values()
    )
    with _quiet():
        program = torch.onnx.export(
            spec.module.eval(),
            arguments,
            dynamo=True,
            opset_version=opset,
            input_names=list(spec.inputs),
            output_names=list(spec.outputs),
            custom_translation_table=_translations(opset),
            optimize=True,
            verbose=False,
        )
    assert program is not None
    model = program.model_proto
    model.ir_version = IR_VERSION
    _name_after_modules(model, spec.module)
    share_inputs(model)
    _pack_int4(model)
    return model


def scope_of(node: onnx.NodeProto) -> tuple[str | None, str]:
    """Path of the module that a node comes from, and the function in it."""
    for entry in node.metadata_props:
        if entry.key == "pkg.torch.onnx.name_scopes":
            scopes = ast.literal_eval(entry.value)
            return scopes[-2], scopes[-1]
    return None, ""


def save(model: onnx.ModelProto, path: Path, *, keep_scopes: bool = False) -> OnnxFile:
    """Write a graph, its weights beside it. `model` is used up.

    Args:
        keep_scopes: leave what the exporter noted on nodes: it holds source paths of this machine,
            so it is not part of the product.
    """
    if not keep_scopes:
        del model.metadata_props[:]
        for node in model.graph.node:
            del node.metadata_props[:]
            node.doc_string = ""
        for value in (*model.graph.value_info, *model.graph.initializer):
            del value.metadata_props[:]
    parameters = sum(
        _size(tensor)
        for tensor in model.graph.initializer
        if not tensor.name.removesuffix("/low").endswith(FORMAT_PARTS)
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    weights_path(path).unlink(missing_ok=True)
    convert_model_to_external_data(
        model, location=weights_path(path).name, size_threshold=INLINE_BYTES
    )
    onnx.save(model, path)
    result = OnnxFile(path, parameters, 0)
    for file in result.files:
        file.chmod(0o644)  # the library writes weights for their owner only
    total = sum(file.stat().st_size for file in result.files)
    return OnnxFile(path, parameters, total)


def skeleton(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy whose large weights are inputs of the graph: for whoever looks at types and shapes.

    Both of onnx's own tools for that copy all they are given, twice.
    """
    bare = onnx.ModelProto()
    for field, value in model.ListFields():
        if field.name == "graph":
            continue
        if isinstance(value, (int, str)):
            setattr(bare, field.name, value)
        else:
            getattr(bare, field.name).extend(value)
    graph, own = bare.graph, model.graph
    graph.name = own.name
    for name in ("node", "input", "output", "value_info"):
        getattr(graph, name).extend(getattr(own, name))
    for tensor in own.initializer:
        if len(tensor.raw_data) < INLINE_BYTES:
            graph.initializer.add().CopyFrom(tensor)
        else:
            graph.input.append(
                onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
            )
    return bare


def _translations(opset: int) -> dict[Callable[..., Any], Callable[..., Any]]:
    """How the operators of `quant.modules` are written."""
    op: Any = {18: onnxscript.opset18, 21: onnxscript.opset21}[opset]
    zero = onnx.helper.make_tensor("zero", onnx.TensorProto.INT8, [], [0])

    def fake_quantize(x: Any, scale: Any) -> Any:
        zero_point = op.Constant(value=zero)  # without one the codes would be unsigned
        return op.DequantizeLinear(op.QuantizeLinear(x, scale, zero_point), scale, zero_point)

    def dequantize(codes: Any, scales: Any, block: int) -> Any:
        if block:
            return op.DequantizeLinear(codes, scales, axis=0, block_size=block)
        return op.DequantizeLinear(codes, scales, axis=1)

    return {
        torch.ops.anchorvla.fake_quantize.default: fake_quantize,
        torch.ops.anchorvla.dequantize.default: dequantize,
    }


def _name_after_modules(model: onnx.ModelProto, module: nn.Module) -> None:
    """Nodes by their module and operator, and folded weights of linear layers by their layer.

    So a compiler's layer list can be read, and the audit knows every product.
    """
    linear = {path for path, m in module.named_modules() if isinstance(m, nn.Linear)}
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    renamed: dict[str, str] = {}
    used: Counter[str] = Counter()
    for node in model.graph.node:
        path, _ = scope_of(node)
        if path is None:
            continue
        name = f"{path}/{node.op_type}".lstrip("/")
        used[name] += 1
        node.name = name if used[name] == 1 else f"{name}_{used[name]}"
        if path in linear and node.op_type in ("MatMul", "Gemm") and node.input[1] in constants:
            old, new = node.input[1], f"{path}.weight"
            if new not in constants and new not in renamed.values():
                renamed[old] = new
    for node in model.graph.node:
        node.input[:] = [renamed.get(name, name) for name in node.input]
    for tensor in (*model.graph.initializer, *model.graph.value_info):
        tensor.name = renamed.get(tensor.name, tensor.name)


def _pack_int4(model: onnx.ModelProto) -> None:
    """Codes in blocks are int4: two to a byte, the lower half first."""
    codes = {
        node.input[0]
        for node in model.graph.node
        if node.op_type == "DequantizeLinear"
        and any(a.name == "block_size" and a.i for a in node.attribute)
    }
    for tensor in model.graph.initializer:
        if tensor.name in codes:
            flat = onnx.numpy_helper.to_array(tensor).ravel().view(np.uint8) & 0xF
            flat = np.append(flat, np.zeros(len(flat) % 2, np.uint8))
            tensor.raw_data = (flat[::2] | flat[1::2] << 4).tobytes()
            tensor.data_type = onnx.TensorProto.INT4
    for value in model.graph.value_info:
        if value.name in codes:
            value.type.tensor_type.elem_type = onnx.TensorProto.INT4


def _size(tensor: onnx.TensorProto) -> int:
    size = 1
    for side in tensor.dims:
        size *= side
    return size


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The exporter narrates on stdout and warns about its own internals; errors still raise."""
    level = logging.getLogger("torch.onnx").level
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        yield
    logging.getLogger("torch.onnx").setLevel(level)
