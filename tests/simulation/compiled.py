"""A stand-in for `tensorrt`, as far as it runs plans; they compute with ONNX Runtime."""

from __future__ import annotations

import copy
import enum
import functools
import hashlib
import io
import json
import mmap
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np

from runtime.backends.onnxruntime_module import ort
from tests.simulation.world import ALIGNMENT, Op, Span, Violation, World, module

PLAN = b"simulated plan of "
"""How a plan begins; the path of its ONNX file follows, and behind a zero perhaps an archive of it
and its weights."""
KINDS = {"float": "FLOAT", "float16": "HALF", "int32": "INT32", "int64": "INT64", "uint8": "UINT8"}
NUMPY = {
    "FLOAT": "float32",
    "HALF": "float16",
    "INT32": "int32",
    "INT64": "int64",
    "UINT8": "uint8",
}


def make_plan(path: Path) -> memoryview:
    """What a build would have made of an ONNX file."""
    return mapped(PLAN + str(path).encode())


def mapped(plan: bytes) -> memoryview:
    """Bytes as they would be if a file with them was mapped."""
    mapping = mmap.mmap(-1, len(plan))
    mapping[:] = plan
    return memoryview(mapping)


@functools.cache
def _unpacked() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="simulated-plans-")


def network_of(plan: bytes) -> Path:
    """The ONNX file of a plan: unpacked from it, or where it was when the plan was made."""
    said, _, files = plan.removeprefix(PLAN).partition(b"\0")
    path = Path(said.decode())
    if not files:
        return path
    folder = Path(_unpacked().name, hashlib.sha256(files).hexdigest())
    if not folder.exists():
        zipfile.ZipFile(io.BytesIO(files)).extractall(folder)
    return folder / path.name


@functools.lru_cache(maxsize=16)
def session_of(path: Path, changed_ns: int) -> ort.InferenceSession:
    """Made once for a file, however often tests deserialize its plan."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    return ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])


class Severity(enum.IntEnum):
    INTERNAL_ERROR = 0
    ERROR = 1
    WARNING = 2


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


def module_of(runtime: type) -> ModuleType:
    """`tensorrt` with this `Runtime`."""
    return module(
        "tensorrt",
        __version__="10.3.0",
        DataType=DataType,
        ExecutionContextAllocationStrategy=ExecutionContextAllocationStrategy,
        ILogger=ILogger,
        LayerInformationFormat=LayerInformationFormat,
        Runtime=runtime,
        TensorIOMode=TensorIOMode,
    )


def tensorrt(world: World) -> ModuleType:
    class Runtime:
        def __init__(self, logger: Any) -> None:
            self.logger = logger

        def deserialize_cuda_engine(self, given: memoryview) -> Engine | None:
            if not world.is_verified:
                raise Violation("a plan is deserialized before its bundle is verified")
            world.num_deserialized += 1
            if world.is_refused("deserialize_cuda_engine"):
                return None
            plan = bytes(given)
            if not plan.startswith(PLAN):
                self.logger.log(Severity.ERROR, "Magic tag does not match")
                return None
            try:
                path = network_of(plan)
                weights = sum(f.stat().st_size for f in path.parent.glob(f"{path.stem}.*"))
                # A real plan is as large as its weights, and pages of a file take nothing.
                copied = 0 if isinstance(memoryview(given).obj, mmap.mmap) else weights
                if weights + copied > world.free_bytes:
                    self.say_that_memory_is_short(weights)
                    return None
                return Engine(path, weights)
            except Exception as error:
                self.logger.log(Severity.ERROR, str(error))
                return None

        def say_that_memory_is_short(self, size: int) -> None:
            words = f"Requested amount of GPU memory ({size} bytes) could not be allocated."
            self.logger.log(Severity.WARNING, words)
            self.logger.log(Severity.ERROR, "Error Code 2: OutOfMemory (no further information)")

    class Weights:
        """Memory on the GPU that goes with its engine."""

        def __init__(self, size: int) -> None:
            self.size = size
            world.free_bytes -= size

        def __del__(self) -> None:
            world.free_bytes += self.size

    class Engine:
        def __init__(self, path: Path, weights: int) -> None:
            self.session = session_of(path, path.stat().st_mtime_ns)
            inputs, outputs = self.session.get_inputs(), self.session.get_outputs()
            self.ports = {node.name: node for node in (*inputs, *outputs)}
            self.input_names = [node.name for node in inputs]
            self.num_io_tensors = len(self.ports)
            self.device_memory_size_v2 = sum(self.num_bytes(name) for name in self.input_names)
            self.weights: Weights | None = Weights(weights)

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
        ) -> ExecutionContext | None:
            if world.is_refused("create_execution_context"):
                return None
            if strategy is not ExecutionContextAllocationStrategy.USER_MANAGED:
                raise Violation("a context with scratch memory of its own")
            network = copy.copy(self)
            network.weights = None  # what is enqueued may outlive the engine
            return ExecutionContext(Body(network))

    class Body:
        """What a context does; enqueued work may outlive the context itself."""

        def __init__(self, engine: Engine) -> None:
            self.engine = engine
            self.addresses: dict[str, int] = {}
            self.scratch: tuple[int, int] | None = None
            self.has_run = False
            self.output_names = [n for n in engine.ports if n not in engine.input_names]

        def spans(self, names: list[str]) -> tuple[Span, ...]:
            return tuple(
                Span.of(
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
            outputs = list(self.arrays(self.output_names))
            world.run_engine(self.compute, outputs)

        def compute(self) -> None:
            engine, outputs = self.engine, self.output_names
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
            world.alive["context"] += 1

        def __del__(self) -> None:
            world.alive["context"] -= 1
            world.context_destroyed(self.body)

        def set_tensor_address(self, name: str, address: int) -> bool:
            if world.is_refused("set_tensor_address"):
                return False
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
            if world.is_refused("execute_async_v3"):
                return False
            if world.timeline_of(stream) is not world.now and not body.has_run:
                raise Violation("allocation inside a capture: the context's first run")
            body.has_run = True
            scratch = Span.of(*body.scratch)
            reads = body.spans(engine.input_names)
            writes = (*body.spans(body.output_names), scratch)
            world.submit(Op(stream, body.run, reads, writes, (body,)))
            return True

    return module_of(Runtime)
