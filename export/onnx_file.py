"""One engine -> one ONNX file with its weights beside it."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import onnx
import torch
from onnx.external_data_helper import convert_model_to_external_data

from models.split import EngineSpec

IR_VERSION = 10
"""The newest that ONNX Runtime 1.23 and TensorRT 10.3 both read; helpers write newer ones."""
INLINE_BYTES = 1024
"""Smaller weights stay in the graph file."""


@dataclass(frozen=True, slots=True)
class OnnxFile:
    """What was written."""

    path: Path
    parameters: int
    """Numbers in the initializers."""
    num_bytes: int
    """Graph and weights together."""

    @property
    def files(self) -> tuple[Path, ...]:
        weights = weights_path(self.path)
        return (self.path, weights) if weights.exists() else (self.path,)


def weights_path(path: Path) -> Path:
    return path.with_suffix(".weights")


def write_onnx(spec: EngineSpec, path: Path, *, opset: int) -> OnnxFile:
    """Export the module of `spec` with its port names and fixed shapes.

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
            optimize=True,
            verbose=False,
        )
    assert program is not None
    model = program.model_proto
    model.ir_version = IR_VERSION
    del model.metadata_props[:]
    for node in model.graph.node:  # source traces of this machine: not part of the product
        del node.metadata_props[:]
        node.doc_string = ""
    for value in (*model.graph.value_info, *model.graph.initializer):
        del value.metadata_props[:]
    parameters = sum(_size(tensor) for tensor in model.graph.initializer)
    path.parent.mkdir(parents=True, exist_ok=True)
    convert_model_to_external_data(
        model, location=weights_path(path).name, size_threshold=INLINE_BYTES
    )
    onnx.save(model, path)
    result = OnnxFile(path, parameters, 0)
    for file in result.files:
        file.chmod(0o644)  # the library writes weights for their owner only
    total = sum(file.stat().st_size for file in result.files)
    return OnnxFile(path, parameters, total)


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
