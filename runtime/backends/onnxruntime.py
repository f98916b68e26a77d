"""Engines on ONNX Runtime's CPU provider, bound to numpy buffers without copies."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..board.arithmetic import no_bfloat16
from ..declarations import ALIGNMENT, Tensor
from ..engine import Launch, Memory, in_order
from ..errors import EngineError
from ..graph import Graph
from .onnxruntime_module import ort

SMALL_ENGINE_BYTES = 8 << 20
"""An engine with less to read than this runs on one thread: handing out work to a sleeping one
costs more than it saves (warm tick of the demo: 13.5 ms on two threads, 9.8 ms on one)."""

DTYPES = {
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
    "tensor(int32)": "int32",
    "tensor(int64)": "int64",
    "tensor(uint8)": "uint8",
}


class OnnxRuntimeBackend:
    """The CPU backend.

    Args:
        num_threads: threads of a large engine; all cores by default. Idle threads sleep at once
            instead of spinning, because the next stage belongs to another engine with threads of
            its own: spinning made the demo's warm tick three times slower.
    """

    name = "onnxruntime"
    waits = "not applicable"
    reads_onnx = True

    def __init__(self, num_threads: int | None = None) -> None:
        self.num_threads = num_threads or len(os.sched_getaffinity(0))
        self.bytes_read = 0

    def memory(self, graph: Graph) -> HostMemory:
        return HostMemory(graph)

    def engine(self, path: Path) -> OnnxRuntimeEngine:
        engine = OnnxRuntimeEngine(path, self.num_threads)
        self.bytes_read += engine.num_bytes
        return engine

    def launcher(
        self, graph: Graph, runs: Mapping[str, Callable[[], None]], memory: Memory
    ) -> Launch:
        return in_order(graph, runs, memory)

    def settle(self) -> None:
        """Nothing is prepared on the way."""

    def close(self) -> None:
        """Python gives everything back."""


class HostMemory:
    """One aligned numpy buffer per tensor that owns memory; parts are views."""

    def __init__(self, graph: Graph) -> None:
        owned = {name: _aligned(graph.tensors[name]) for name in graph.roots}
        self._arrays: dict[str, NDArray[Any]] = {}
        for name, tensor in graph.tensors.items():
            root, start, stop = graph.extent(name)
            self._arrays[name] = owned[root].reshape(-1)[start:stop].reshape(tensor.shape)

    def host(self, name: str) -> NDArray[Any]:
        return self._arrays[name]

    def upload(self, name: str) -> None:
        """Host and engines share this memory."""

    def download(self, name: str) -> None:
        """Host and engines share this memory."""

    def copy(self, source: str, target: str) -> None:
        self._arrays[target][...] = self._arrays[source]


def file_bytes(path: Path) -> int:
    """Of an engine's ONNX file and the weights beside it."""
    return sum(file.stat().st_size for file in path.parent.glob(f"{path.stem}.*"))


class OnnxRuntimeEngine:
    def __init__(self, path: Path, num_threads: int) -> None:
        options = ort.SessionOptions()
        self.num_bytes = file_bytes(path)
        is_small = self.num_bytes < SMALL_ENGINE_BYTES
        options.intra_op_num_threads = 1 if is_small else num_threads
        options.log_severity_level = 3
        # By default a float input of a weight-only product is rounded to int8 on the way, which is
        # not what the exporter measured.
        options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        try:
            # A bias fused into a product hides the product from the fusion into integer arithmetic:
            # 2.7 s instead of 0.5 s for a warm tick at published widths.
            is_quantized = b"uantizeLinear" in path.read_bytes()
            self._session = ort.InferenceSession(
                path,
                options,
                providers=["CPUExecutionProvider"],
                disabled_optimizers=["MatMulAddFusion"] if is_quantized else [],
            )
        except Exception as error:  # its exception classes share no public base
            told = " ".join(str(error).split())
            if "NOT_IMPLEMENTED" in told or "bfloat16" in told:
                told = f"{no_bfloat16(path.parents[1])} ({told})"
            raise EngineError(f"{path}: ONNX Runtime refuses this engine: {told}") from error
        self.path = path
        self.inputs = {node.name: _spec(node, path) for node in self._session.get_inputs()}
        self.outputs = {node.name: _spec(node, path) for node in self._session.get_outputs()}

    def bind(
        self, inputs: Mapping[str, str], outputs: Mapping[str, str], memory: Memory
    ) -> Callable[[], None]:
        binding = self._session.io_binding()
        for ports, specs, bind in (
            (inputs, self.inputs, binding.bind_input),
            (outputs, self.outputs, binding.bind_output),
        ):
            if ports.keys() != specs.keys():
                raise EngineError(
                    f"{self.path}: ports {sorted(specs)} expected, got {sorted(ports)}"
                )
            for port, name in ports.items():
                array = memory.host(name)
                spec = specs[port]
                if array.shape != spec.shape or array.dtype != spec.dtype:
                    raise EngineError(
                        f"{self.path}: port {port!r} is {spec.dtype} {list(spec.shape)}, but "
                        f"tensor {name!r} is {array.dtype} {list(array.shape)}"
                    )
                bind(port, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)
        path, session, bound = self.path, self._session, (memory, binding)

        def run() -> None:
            try:
                session.run_with_iobinding(bound[1])  # `bound` keeps the memory alive as well
            except Exception as error:
                raise EngineError(f"{path}: ONNX Runtime failed: {error}") from error

        return run


def _aligned(tensor: Tensor) -> NDArray[Any]:
    raw = np.zeros(tensor.num_bytes + ALIGNMENT, np.uint8)
    start = -raw.ctypes.data % ALIGNMENT
    dtype = np.uint16 if tensor.dtype == "bfloat16" else np.dtype(tensor.dtype)
    return raw[start : start + tensor.num_bytes].view(dtype).reshape(tensor.shape)


def _spec(node: Any, path: Path) -> Tensor:
    if node.type not in DTYPES or not all(isinstance(side, int) for side in node.shape):
        raise EngineError(f"{path}: port {node.name!r} is {node.type} {node.shape}, not static")
    return Tensor(shape=tuple(node.shape), dtype=DTYPES[node.type])
