"""Engines on TensorRT: what runs on the robot.

One deserialized engine per plan, one execution context per stage, bound once to permanent
addresses. TensorRT for RTX is the same class under another module name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ..declarations import ALIGNMENT, Tensor
from ..engine import Launch, Memory
from ..errors import EngineError
from ..graph import Graph
from ..plans.compiler import error_logger, load_tensorrt
from ..plans.diagnosis import FREE_MEMORY, SHORT_OF_MEMORY, joined
from ..plans.folder import how_to_build
from .cuda import Cuda
from .cuda_context import Wait
from .cuda_launch import CudaLauncher
from .device_memory import DeviceMemory

DTYPES = {
    "FLOAT": "float32",
    "HALF": "float16",
    "BF16": "bfloat16",
    "INT32": "int32",
    "INT64": "int64",
    "UINT8": "uint8",
}


class TensorRTBackend:
    """The GPU backend.

    Args:
        read_plan: path of an engine's ONNX file in a verified bundle -> its serialized plan, which
            must have been checked: deserializing runs native code. Released when it was read.
        name: `tensorrt`, or `tensorrt_rtx`.
        wait: how the host waits for the GPU, see `cuda_context`.

    Raises:
        EngineError: TensorRT, CUDA's Python packages or a GPU are missing.
    """

    reads_onnx = False

    def __init__(
        self,
        read_plan: Callable[[Path], memoryview],
        *,
        name: str = "tensorrt",
        wait: Wait | None = None,
    ) -> None:
        self.name = name
        self.bytes_read = 0
        self._trt = load_tensorrt(name)
        self.cuda = Cuda(wait)  # before TensorRT, which would make the context in its own way
        self._read_plan = read_plan
        self._messages: list[str] = []
        self._logger = error_logger(self._trt, self._messages)
        self._runtime = self._trt.Runtime(self._logger)
        self._engines: list[TensorRTEngine] = []
        self._memories: list[DeviceMemory] = []
        self._launchers: list[CudaLauncher] = []

    @property
    def waits(self) -> str:
        return self.cuda.context.waits

    def memory(self, graph: Graph) -> DeviceMemory:
        memory = DeviceMemory(graph, self.cuda)
        self._memories.append(memory)
        return memory

    def engine(self, path: Path) -> TensorRTEngine:
        with self._read_plan(path) as plan:
            self._messages.clear()
            self.bytes_read += plan.nbytes
            deserialized = self._runtime.deserialize_cuda_engine(plan)
        if deserialized is None:
            why = joined(self._messages) or "it gave no reason"
            remedy = f"make it again: {how_to_build(path.parents[1])}"
            if SHORT_OF_MEMORY.search(why):
                remedy = f"its memory was too little: {FREE_MEMORY}"
            raise EngineError(f"{path}: TensorRT refuses the plan of this engine ({why}); {remedy}")
        engine = TensorRTEngine(path, deserialized, self._trt)
        self._engines.append(engine)
        return engine

    def launcher(
        self, graph: Graph, runs: Mapping[str, Callable[[], None]], memory: Memory
    ) -> Launch:
        launcher = CudaLauncher(graph, runs, memory, self.cuda)  # type: ignore[arg-type]
        self._launchers.append(launcher)
        return launcher

    def settle(self) -> None:
        for launcher in self._launchers:
            launcher.settle()

    def close(self) -> None:
        """Give everything back: graphs before contexts, contexts before engines, then memory."""
        with self.cuda.context:
            for memory in self._memories:
                memory.drain()  # of copies that nobody waited for
            for launcher in self._launchers:
                launcher.close()
            for engine in self._engines:
                engine.close()
            for memory in self._memories:
                memory.close()
        self._launchers.clear()
        self._engines.clear()
        self._memories.clear()


def inspect_plan(plan: memoryview, *, name: str = "tensorrt") -> tuple[str, int]:
    """What TensorRT's inspector tells of a plan's layers as JSON, and bytes of scratch it needs.

    Raises:
        EngineError: the plan cannot be loaded here.
    """
    trt = load_tensorrt(name)
    messages: list[str] = []
    logger = error_logger(trt, messages)
    runtime = trt.Runtime(logger)
    deserialized = runtime.deserialize_cuda_engine(plan)
    if deserialized is None:
        raise EngineError("; ".join(messages) or "TensorRT refuses the plan")
    inspector = deserialized.create_engine_inspector()
    layers = str(inspector.get_engine_information(trt.LayerInformationFormat.JSON))
    return layers, int(deserialized.device_memory_size_v2)


class TensorRTEngine:
    """See `runtime.engine.Engine`."""

    def __init__(self, path: Path, deserialized: Any, trt: Any) -> None:
        self.path, self._engine, self._trt = path, deserialized, trt
        self._contexts: list[BoundContext] = []
        self.inputs: dict[str, Tensor] = {}
        self.outputs: dict[str, Tensor] = {}
        for index in range(self._engine.num_io_tensors):
            port = self._engine.get_tensor_name(index)
            is_input = self._engine.get_tensor_mode(port) == trt.TensorIOMode.INPUT
            (self.inputs if is_input else self.outputs)[port] = self._spec(port)

    def bind(
        self, inputs: Mapping[str, str], outputs: Mapping[str, str], memory: Memory
    ) -> BoundContext:
        if not isinstance(memory, DeviceMemory):
            raise EngineError(f"{self.path}: TensorRT needs memory on the GPU, got {memory!r}")
        strategy = self._trt.ExecutionContextAllocationStrategy.USER_MANAGED
        context = self._engine.create_execution_context(strategy)
        if context is None:
            raise EngineError(f"{self.path}: TensorRT makes no context; is the GPU's memory full?")
        for ports, specs in ((inputs, self.inputs), (outputs, self.outputs)):
            if ports.keys() != specs.keys():
                raise EngineError(
                    f"{self.path}: ports {sorted(specs)} expected, got {sorted(ports)}"
                )
            for port, name in ports.items():
                self._bind_port(context, port, name, specs[port], memory)
        size = int(self._engine.device_memory_size_v2)
        bound = BoundContext(self.path, context, size, tuple(outputs.values()), memory)
        self._contexts.append(bound)
        return bound

    def close(self) -> None:
        for bound in self._contexts:
            bound.close()
        self._contexts.clear()
        self._engine = None

    def _bind_port(
        self, context: Any, port: str, name: str, spec: Tensor, memory: DeviceMemory
    ) -> None:
        tensor, address = memory.graph.tensors[name], memory.address(name)
        if (tensor.shape, tensor.dtype) != (spec.shape, spec.dtype):
            raise EngineError(
                f"{self.path}: port {port!r} is {spec.dtype} {list(spec.shape)}, but "
                f"tensor {name!r} is {tensor.dtype} {list(tensor.shape)}"
            )
        if address % ALIGNMENT:
            raise EngineError(
                f"{self.path}: tensor {name!r} lies {address % ALIGNMENT} bytes behind a multiple "
                f"of {ALIGNMENT}, which port {port!r} needs: export the bundle again"
            )
        if not context.set_tensor_address(port, address):
            raise EngineError(f"{self.path}: TensorRT refuses the address of port {port!r}")

    def _spec(self, port: str) -> Tensor:
        shape = tuple(self._engine.get_tensor_shape(port))
        kind = self._engine.get_tensor_dtype(port)
        if kind.name not in DTYPES or any(side < 1 for side in shape):
            raise EngineError(f"{self.path}: port {port!r} is {kind.name} {shape}, not static")
        return Tensor(shape=shape, dtype=DTYPES[kind.name])


class BoundContext:
    """An execution context with all its addresses set."""

    def __init__(
        self,
        path: Path,
        context: Any,
        scratch_bytes: int,
        outputs: tuple[str, ...],
        memory: DeviceMemory,
    ) -> None:
        self.scratch_bytes = scratch_bytes
        self._path, self._context, self._memory = path, context, memory
        self._outputs = outputs
        self._own_scratch: Any = None
        self._has_scratch = False

    def __call__(self) -> None:
        """Run alone, after what the host uploaded, and wait for it."""
        if not self._has_scratch:
            self._own_scratch = self._memory.scratch(self.scratch_bytes)
            self.give_scratch(int(self._own_scratch))
        self._memory.flush()
        self._memory.written(self._outputs)
        self.enqueue(self._memory.stream)
        self._memory.flush()

    def give_scratch(self, address: int) -> None:
        """Where intermediate results go: `scratch_bytes`, which others use at other times."""
        self._context.set_device_memory(address, self.scratch_bytes)
        self._has_scratch = True

    def enqueue(self, stream: Any) -> None:
        if not self._context.execute_async_v3(stream.handle):
            raise EngineError(f"{self._path}: TensorRT did not enqueue the engine")

    def close(self) -> None:
        self._context = None
        if self._own_scratch is not None:
            self._memory.release(self._own_scratch)
            self._own_scratch = None
