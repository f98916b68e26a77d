"""Stand-ins for `tensorrt`, `pycuda` and `cuda.bindings.runtime` over one simulated world."""

from __future__ import annotations

import enum
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime as ort

from tests.simulation.world import (
    ALIGNMENT,
    DEVICE,
    PINNED,
    DeviceFull,
    Event,
    Op,
    Span,
    Violation,
    World,
)

PLAN = b"simulated plan of "
KINDS = {"float": "FLOAT", "float16": "HALF", "int32": "INT32", "int64": "INT64", "uint8": "UINT8"}
NUMPY = {
    "FLOAT": "float32",
    "HALF": "float16",
    "INT32": "int32",
    "INT64": "int64",
    "UINT8": "uint8",
}


def make_plan(path: Path) -> bytes:
    """What a build would have made of an ONNX file."""
    return PLAN + str(path).encode()


def install(monkeypatch: Any) -> World:
    """Put the stand-ins in the place of the real modules for one test."""
    world = World()
    modules = {
        "tensorrt": _tensorrt(world),
        "pycuda": ModuleType("pycuda"),
        "pycuda.driver": _driver(world),
        "pycuda.autoprimaryctx": ModuleType("pycuda.autoprimaryctx"),
        "cuda": ModuleType("cuda"),
        "cuda.bindings": ModuleType("cuda.bindings"),
        "cuda.bindings.runtime": _runtime(world),
    }
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    return world


def _module(name: str, **members: Any) -> ModuleType:
    module = ModuleType(name)
    vars(module).update(members)
    return module


def _span(address: int, size: int, dtype: str | None = None) -> Span:
    return Span(address, address + size, dtype)


def _driver(world: World) -> ModuleType:
    class Stream:
        def __init__(self) -> None:
            self.handle = world.new_stream()

        def synchronize(self) -> None:
            world.synchronize(self.handle)

    class DeviceAllocation:
        def __init__(self, size: int) -> None:
            self.block = world.allocate(size, DEVICE)

        def __int__(self) -> int:
            return self.block.start

        def free(self) -> None:
            world.free(self.block)

    def memset_d8(block: DeviceAllocation, value: int, size: int) -> None:
        world.bytes_at(int(block), size)[:] = value

    def pagelocked_zeros(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        return world.allocate(size, PINNED).bytes.view(dtype).reshape(shape)

    def host_span(array: np.ndarray) -> Span:
        block = world.block_at(array.ctypes.data, array.nbytes)
        if block is None or block.kind != PINNED:
            raise Violation("an asynchronous copy of pageable memory")
        return _span(array.ctypes.data, array.nbytes)

    def memcpy_htod_async(address: int, array: np.ndarray, stream: Stream) -> None:
        def run() -> None:
            world.bytes_at(address, array.nbytes)[:] = array.reshape(-1).view(np.uint8)

        target = _span(address, array.nbytes, array.dtype.name)
        world.submit(Op(stream.handle, run, (host_span(array),), (target,)))

    def memcpy_dtoh_async(array: np.ndarray, address: int, stream: Stream) -> None:
        def run() -> None:
            array.reshape(-1).view(np.uint8)[:] = world.bytes_at(address, array.nbytes)

        source = _span(address, array.nbytes, array.dtype.name)
        world.submit(Op(stream.handle, run, (source,), (host_span(array),)))

    def memcpy_dtoh(array: np.ndarray, address: int) -> None:
        if world.capture is not None:
            raise Violation("a synchronous copy inside a capture")
        if world.now.ops:
            raise Violation("a synchronous copy beside work that is not done")
        array.reshape(-1).view(np.uint8)[:] = world.bytes_at(address, array.nbytes)

    class Device:
        def __init__(self, number: int) -> None:
            assert number == 0

        def name(self) -> str:
            return world.gpu

        def compute_capability(self) -> tuple[int, int]:
            return 8, 7

        def get_attribute(self, attribute: str) -> int:
            assert attribute == "multiprocessors"
            return world.num_sms

    return _module(
        "pycuda.driver",
        Device=Device,
        Error=DeviceFull,
        MemoryError=DeviceFull,
        init=lambda: None,
        get_driver_version=lambda: 12060,
        device_attribute=SimpleNamespace(MULTIPROCESSOR_COUNT="multiprocessors"),
        Stream=Stream,
        mem_get_info=lambda: (world.free_bytes, 8 << 30),
        mem_alloc=DeviceAllocation,
        memset_d8=memset_d8,
        pagelocked_zeros=pagelocked_zeros,
        memcpy_htod_async=memcpy_htod_async,
        memcpy_dtoh_async=memcpy_dtoh_async,
        memcpy_dtoh=memcpy_dtoh,
    )


class Status(enum.IntEnum):
    cudaSuccess = 0
    cudaErrorNotReady = 600


def _runtime(world: World) -> ModuleType:
    def answer(function: Callable[..., Any]) -> Callable[..., tuple[Any, ...]]:
        def call(*arguments: Any) -> tuple[Any, ...]:
            value = function(*arguments)
            return (Status.cudaSuccess,) if value is None else (Status.cudaSuccess, value)

        return call

    def destroy_event(event: Event) -> None:
        event.is_destroyed = True

    def elapsed(start: Event, stop: Event) -> tuple[Any, ...]:
        if start.time_s is None or stop.time_s is None:
            return Status.cudaErrorNotReady, 0.0
        return Status.cudaSuccess, 1e3 * (stop.time_s - start.time_s)

    def destroy_executable(graph: Any) -> None:
        graph.is_alive = False

    class cudaStreamCaptureMode(enum.IntEnum):
        cudaStreamCaptureModeThreadLocal = 1

    def begin(stream: int, mode: cudaStreamCaptureMode) -> None:
        world.begin_capture(stream)

    calls: dict[str, Callable[..., Any]] = {
        "cudaEventCreate": Event,
        "cudaEventDestroy": destroy_event,
        "cudaEventRecord": world.record,
        "cudaEventRecordWithFlags": lambda event, stream, flag: world.record_time(
            event, stream, external=flag == 1
        ),
        "cudaStreamWaitEvent": lambda stream, event, flags: world.wait(stream, event),
        "cudaStreamBeginCapture": begin,
        "cudaStreamEndCapture": lambda stream: world.end_capture(),
        "cudaGraphInstantiate": lambda graph, flags: graph,
        "cudaGraphDestroy": lambda graph: None,
        "cudaGraphLaunch": world.launch,
        "cudaGraphExecDestroy": destroy_executable,
    }
    return _module(
        "cuda.bindings.runtime",
        cudaEventRecordDefault=0,
        cudaEventRecordExternal=1,
        cudaStreamCaptureMode=cudaStreamCaptureMode,
        cudaEventElapsedTime=elapsed,
        **{name: answer(call) for name, call in calls.items()},
    )


class Severity(enum.IntEnum):
    INTERNAL_ERROR = 0
    ERROR = 1


class ILogger:
    Severity = Severity


class DataType(enum.Enum):
    FLOAT = 0
    HALF = 1
    INT32 = 3
    UINT8 = 5
    INT64 = 8
    BF16 = 9


class LayerInformationFormat(enum.Enum):
    ONELINE = 0
    JSON = 1


class TensorIOMode(enum.Enum):
    INPUT = 1
    OUTPUT = 2


class ExecutionContextAllocationStrategy(enum.Enum):
    STATIC = 0
    USER_MANAGED = 2


def _tensorrt(world: World) -> ModuleType:
    class Runtime:
        def __init__(self, logger: Any) -> None:
            self.logger = logger

        def deserialize_cuda_engine(self, plan: bytes) -> Engine | None:
            if not world.is_verified:
                raise Violation("a plan is deserialized before its bundle is verified")
            world.num_deserialized += 1
            if not plan.startswith(PLAN):
                self.logger.log(Severity.ERROR, "Magic tag does not match")
                return None
            try:
                return Engine(Path(plan.removeprefix(PLAN).decode()))
            except Exception as error:
                self.logger.log(Severity.ERROR, str(error))
                return None

    class Engine:
        def __init__(self, path: Path) -> None:
            options = ort.SessionOptions()
            options.intra_op_num_threads = 1
            options.log_severity_level = 3
            self.session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
            inputs, outputs = self.session.get_inputs(), self.session.get_outputs()
            self.ports = {node.name: node for node in (*inputs, *outputs)}
            self.input_names = [node.name for node in inputs]
            self.num_io_tensors = len(self.ports)
            self.device_memory_size_v2 = sum(self.num_bytes(name) for name in self.input_names)

        def get_tensor_name(self, index: int) -> str:
            return list(self.ports)[index]

        def get_tensor_mode(self, name: str) -> TensorIOMode:
            return TensorIOMode.INPUT if name in self.input_names else TensorIOMode.OUTPUT

        def get_tensor_shape(self, name: str) -> tuple[int, ...]:
            return tuple(n if isinstance(n, int) else -1 for n in self.ports[name].shape)

        def get_tensor_dtype(self, name: str) -> DataType:
            return DataType[KINDS[self.ports[name].type.removeprefix("tensor(").rstrip(")")]]

        def create_engine_inspector(self) -> SimpleNamespace:
            said = json.dumps({"Layers": []})
            return SimpleNamespace(get_engine_information=lambda form: said)

        def num_bytes(self, name: str) -> int:
            itemsize = np.dtype(NUMPY[self.get_tensor_dtype(name).name]).itemsize
            return int(np.prod(self.get_tensor_shape(name))) * itemsize

        def create_execution_context(
            self, strategy: ExecutionContextAllocationStrategy
        ) -> ExecutionContext:
            if strategy is not ExecutionContextAllocationStrategy.USER_MANAGED:
                raise Violation("a context with scratch memory of its own")
            return ExecutionContext(Body(self))

    class Body:
        """What a context does; enqueued work may outlive the context itself."""

        def __init__(self, engine: Engine) -> None:
            self.engine = engine
            self.addresses: dict[str, int] = {}
            self.scratch: tuple[int, int] | None = None
            self.has_run = False

        def spans(self, names: list[str]) -> tuple[Span, ...]:
            return tuple(
                _span(
                    self.addresses[name],
                    self.engine.num_bytes(name),
                    NUMPY[self.engine.get_tensor_dtype(name).name],
                )
                for name in names
            )

        def arrays(self, names: list[str]) -> Iterator[np.ndarray]:
            for name, span in zip(names, self.spans(names), strict=True):
                raw = world.bytes_at(span.start, span.stop - span.start)
                yield raw.view(span.dtype).reshape(self.engine.get_tensor_shape(name))

        def run(self) -> None:
            engine = self.engine
            outputs = [name for name in engine.ports if name not in engine.input_names]
            assert self.scratch is not None
            scratch, used, feed = world.bytes_at(*self.scratch), 0, {}
            for name, array in zip(
                engine.input_names, self.arrays(engine.input_names), strict=True
            ):  # intermediate results live in scratch memory
                part = scratch[used : used + array.nbytes]
                part[:] = array.reshape(-1).view(np.uint8)
                feed[name] = part.view(array.dtype).reshape(array.shape)
                used += array.nbytes
            results = engine.session.run(outputs, feed)
            for target, result in zip(self.arrays(outputs), results, strict=True):
                target[...] = result

    class ExecutionContext:
        def __init__(self, body: Body) -> None:
            self.body = body

        def __del__(self) -> None:
            world.context_destroyed(self.body)

        def set_tensor_address(self, name: str, address: int) -> bool:
            if name not in self.body.engine.ports:
                raise Violation(f"the engine has no tensor {name!r}")
            if address % ALIGNMENT:
                raise Violation(f"the address of {name!r} is no multiple of {ALIGNMENT}")
            self.body.addresses[name] = address
            return True

        def set_device_memory(self, address: int, size: int) -> None:
            if address % ALIGNMENT:
                raise Violation(f"the address of scratch memory is no multiple of {ALIGNMENT}")
            self.body.scratch = (address, size)

        def execute_async_v3(self, stream: int) -> bool:
            body = self.body
            engine = body.engine
            if missing := sorted(engine.ports.keys() - body.addresses.keys()):
                raise Violation(f"an engine runs with tensors unbound: {missing}")
            if body.scratch is None or body.scratch[1] < engine.device_memory_size_v2:
                raise Violation("an engine runs with too little scratch memory")
            if world.timeline_of(stream) is not world.now and not body.has_run:
                raise Violation("allocation inside a capture: the context's first run")
            body.has_run = True
            outputs = [name for name in engine.ports if name not in engine.input_names]
            scratch = _span(*body.scratch)
            reads, writes = body.spans(engine.input_names), (*body.spans(outputs), scratch)
            world.submit(Op(stream, body.run, reads, writes, (body,)))
            return True

    return _module(
        "tensorrt",
        __version__="10.3.0",
        DataType=DataType,
        ExecutionContextAllocationStrategy=ExecutionContextAllocationStrategy,
        ILogger=ILogger,
        LayerInformationFormat=LayerInformationFormat,
        Runtime=Runtime,
        TensorIOMode=TensorIOMode,
    )
