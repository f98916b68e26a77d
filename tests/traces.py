"""Tracing a module for ONNX is nine tenths of an export: a test run traces no module twice."""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import onnx
import pytest
import torch

from export.engines import engine as engines
from models.networks.engines import EngineSpec

MAX_BYTES = 256 << 20
"""Larger graphs, of published widths, are traced once and not worth a copy."""


@contextmanager
def remembered(folder: Path) -> Iterator[None]:
    """Exports inside take a trace from `folder` if it was made of the same bytes."""
    trace = engines.export_graph

    def export_graph(spec: EngineSpec, *, opset: int) -> onnx.ModelProto:
        return _once(folder / f"{_digest(spec, opset)}.onnx", lambda: trace(spec, opset=opset))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engines, "export_graph", export_graph)
        yield


def _once(path: Path, trace: Callable[[], onnx.ModelProto]) -> onnx.ModelProto:
    if path.exists():
        return onnx.load(path)
    model = trace()
    if model.ByteSize() < MAX_BYTES:
        path.parent.mkdir(parents=True, exist_ok=True)
        new = path.with_suffix(f".{os.getpid()}")
        onnx.save(model, new)
        new.rename(path)
    return model


def _digest(spec: EngineSpec, opset: int) -> str:
    """Of everything that a trace depends on: the module with all that it holds, and its ports."""
    whole = io.BytesIO()
    torch.save(spec.module.eval(), whole)
    digest = hashlib.sha256(whole.getbuffer())
    digest.update(repr((spec.inputs, spec.outputs, opset)).encode())
    return digest.hexdigest()
