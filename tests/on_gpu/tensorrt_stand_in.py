"""A stand-in for `tensorrt` on a real GPU: contexts enqueue torch's kernels on a given stream."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import torch

from tests.on_gpu.torch_graph import Port, TorchGraph, graph_of
from tests.simulation.compiled import (
    PLAN,
    DataType,
    ExecutionContextAllocationStrategy,
    TensorIOMode,
    module_of,
)

KINDS = {
    torch.float32: DataType.FLOAT,
    torch.float16: DataType.HALF,
    torch.bfloat16: DataType.BF16,
    torch.int32: DataType.INT32,
    torch.int64: DataType.INT64,
    torch.uint8: DataType.UINT8,
}
STORAGE = {1: "|u1", 2: "<u2", 4: "<u4", 8: "<u8"}
"""By bytes of an element: what an array interface can name, bfloat16 not among it."""
SCRATCH = 1 << 12
"""Bytes that a context asks for; torch has memory of its own."""


class Delays:
    """Cycles of the GPU's clock that an engine sleeps, before it reads and before it writes.

    What nobody waits for is then read too early, or overwritten too late.
    """

    def __init__(self) -> None:
        self.cycles: Iterator[int] = iter(())

    def sleep(self) -> None:
        if cycles := next(self.cycles, 0):
            torch.cuda._sleep(cycles)


class Engine:
    """See `tensorrt.ICudaEngine`."""

    def __init__(self, graph: TorchGraph, delays: Delays) -> None:
        self.graph, self._delays = graph, delays
        self.ports: dict[str, Port] = {**graph.inputs, **graph.outputs}
        self.num_io_tensors = len(self.ports)
        self.device_memory_size_v2 = SCRATCH

    def get_tensor_name(self, index: int) -> str:
        return list(self.ports)[index]

    def get_tensor_mode(self, name: str) -> TensorIOMode:
        return TensorIOMode.INPUT if name in self.graph.inputs else TensorIOMode.OUTPUT

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return self.ports[name][0]

    def get_tensor_dtype(self, name: str) -> DataType:
        return KINDS[self.ports[name][1]]

    def create_engine_inspector(self) -> SimpleNamespace:
        return SimpleNamespace(get_engine_information=lambda form: '{"Layers": []}')

    def create_execution_context(
        self, strategy: ExecutionContextAllocationStrategy
    ) -> ExecutionContext:
        return ExecutionContext(self, self._delays)


class ExecutionContext:
    """See `tensorrt.IExecutionContext`. Intermediate results lie in a pool of its own.

    The first run fills the pool, so that a captured one finds what it needs and allocates nothing.
    """

    def __init__(self, engine: Engine, delays: Delays) -> None:
        self._engine, self._delays = engine, delays
        self._bound: dict[str, torch.Tensor] = {}
        self._pool = torch.cuda.MemPool()

    def set_tensor_address(self, name: str, address: int) -> bool:
        shape, dtype = self._engine.ports[name]
        self._bound[name] = _at(address, shape, dtype)
        return True

    def set_device_memory(self, address: int, size: int) -> None:
        assert size >= SCRATCH
        assert address

    def execute_async_v3(self, stream: int) -> bool:
        graph, bound = self._engine.graph, self._bound
        with (
            torch.inference_mode(),
            torch.cuda.stream(torch.cuda.ExternalStream(stream)),
            torch.cuda.use_mem_pool(self._pool),
        ):
            self._delays.sleep()
            results = graph({name: bound[name] for name in graph.inputs})
            self._delays.sleep()
            for name, result in results.items():
                bound[name].copy_(result)
        return True


def _at(address: int, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """The tensor of the GPU that lies there."""
    interface = {
        "data": (address, False),
        "shape": shape,
        "typestr": STORAGE[dtype.itemsize],
        "version": 3,
    }
    raw = torch.as_tensor(SimpleNamespace(__cuda_array_interface__=interface), device="cuda")
    return raw.view(dtype)


def tensorrt(delays: Delays) -> ModuleType:
    """The module."""

    class Runtime:
        def __init__(self, logger: Any) -> None:
            pass

        def deserialize_cuda_engine(self, plan: bytes) -> Engine:
            path = Path(bytes(plan).removeprefix(PLAN).decode())
            return Engine(graph_of(path, path.stat().st_mtime_ns, "cuda"), delays)

    return module_of(Runtime)


def why_no_gpu() -> str:
    """Empty where a GPU, its driver and the Python packages answer."""
    from runtime.backends.cuda import Cuda
    from runtime.errors import EngineError

    try:
        Cuda()
    except EngineError as error:
        return str(error)
    return "" if torch.cuda.is_available() else "this torch has no CUDA"
