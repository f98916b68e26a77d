"""The CUDA calls that the runtime makes, on the primary context of the first GPU.

pycuda has memory, streams and copies; cuda.bindings has what pycuda lacks: capture, and events
that can be timed inside a captured graph. Both see the same stream handles. Every call may be made
on any thread: see `cuda_context`.
"""

from __future__ import annotations

import contextlib
import importlib
import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..board.supported import CUDA_ERRORS
from ..errors import EngineError
from ..plans.diagnosis import FREE_MEMORY
from .cuda_context import PrimaryContext, Wait

INSTALL = (
    "on a Jetson pycuda is built from source and cuda.bindings has wheels "
    "(requirements/robot-tensorrt.txt); anchorvla doctor says what is missing"
)
BROKEN = "if it comes again, start the process again, and look at anchorvla doctor"
"""A CUDA context that a kernel broke answers every later call with the same error."""


class Cuda:
    """The primary context, which other libraries of the process share.

    `with cuda.context:` around many calls is cheaper than each by itself.

    Args:
        wait: how the host waits for the GPU, see `cuda_context`.

    Raises:
        EngineError: pycuda or cuda-bindings is missing, or there is no GPU.
    """

    def __init__(self, wait: Wait | None = None) -> None:
        try:
            self.driver: Any = importlib.import_module("pycuda.driver")
            self._runtime: Any = importlib.import_module("cuda.bindings.runtime")
            bindings = importlib.import_module("cuda.bindings.driver")
        except ImportError as error:
            raise EngineError(f"no CUDA from Python here ({error}): {INSTALL}") from None
        try:
            self.context = PrimaryContext(self.driver, bindings, wait)
        except (self.driver.Error, RuntimeError) as error:
            raise EngineError(f"no usable GPU here: {error}; try anchorvla doctor") from error

    def allocate(self, num_bytes: int, what: str) -> Owned:
        """Memory on the GPU, until its `free`; an `int` of it is its address.

        Raises:
            EngineError: there is too little.
        """
        raw = self._allocate(num_bytes, what, self.driver.mem_alloc, num_bytes)
        return Owned(raw, self.context)

    def free(self, block: Owned) -> None:
        """Give memory back. See `destroy_event` about failures."""
        with contextlib.suppress(self.driver.Error, EngineError), self.context:
            block.raw.free()

    def page_locked(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
        """Zeros on the host that the GPU can copy while the host goes on.

        The memory goes with the last array that looks at it.

        Raises:
            EngineError: there is too little memory, which a board's GPU and host share.
        """
        num_bytes, what = math.prod(shape) * dtype.itemsize, "what the host reads and writes"
        zeros = self._allocate(num_bytes, what, self.driver.pagelocked_zeros, shape, dtype)
        return np.asarray(_PageLocked(zeros, self.context))

    def clear(self, block: Owned, num_bytes: int) -> None:
        """Fill with zeros."""
        self._drive("clearing memory", self.driver.memset_d8, int(block), 0, num_bytes)

    def stream(self) -> Owned:
        """One that goes when nothing refers to it any more."""
        return Owned(self._drive("a stream", self.driver.Stream), self.context)

    def synchronize(self, stream: Owned) -> None:
        """Wait until `stream` has done what it was given."""
        self._drive("waiting for the GPU", stream.raw.synchronize)

    def copy_in(self, address: int, array: NDArray[Any], stream: Owned) -> None:
        """From page-locked memory, when it is the stream's turn."""
        copy = self.driver.memcpy_htod_async
        self._drive("a copy to the GPU", copy, address, array, stream.raw)

    def copy_out(self, array: NDArray[Any], address: int, stream: Owned) -> None:
        """Into page-locked memory, when it is the stream's turn."""
        copy = self.driver.memcpy_dtoh_async
        self._drive("a copy from the GPU", copy, array, address, stream.raw)

    def copy_across(self, target: int, source: int, num_bytes: int, stream: Owned) -> None:
        """From an address on the GPU to another, when it is the stream's turn."""
        copy = self.driver.memcpy_dtod_async
        self._drive("a copy on the GPU", copy, target, source, num_bytes, stream.raw)

    def copy_over(self, address: int, array: NDArray[Any]) -> None:
        """To the GPU, now; from any memory. Our streams wait for it: none is a non-blocking one."""
        self._drive("a copy to the GPU", self.driver.memcpy_htod, address, array)

    def copy_back(self, array: NDArray[Any], address: int) -> None:
        """To the host, now; into any memory."""
        self._drive("a copy from the GPU", self.driver.memcpy_dtoh, array, address)

    def event(self) -> Any:
        """One that can be timed, until `destroy_event`."""
        return self._call("cudaEventCreate")

    def record(self, event: Any, stream: Any) -> None:
        """Order: whoever waits for `event` waits for what `stream` was given so far."""
        self._call("cudaEventRecord", event, stream.handle)

    def record_time(self, event: Any, stream: Any, *, captured: bool) -> None:
        """Time: `event` can be read after synchronization, inside a captured graph too."""
        runtime = self._runtime
        flag = runtime.cudaEventRecordExternal if captured else runtime.cudaEventRecordDefault
        self._call("cudaEventRecordWithFlags", event, stream.handle, flag)

    def wait(self, stream: Any, event: Any) -> None:
        """What `stream` is given from now on waits for `event`."""
        self._call("cudaStreamWaitEvent", stream.handle, event, 0)

    def seconds(self, start: Any, stop: Any) -> float:
        """Between two recorded times."""
        milliseconds: float = self._call("cudaEventElapsedTime", start, stop)
        return milliseconds / 1e3

    @contextlib.contextmanager
    def capture(self, stream: Any) -> Iterator[CapturedGraph]:
        """What is given to `stream` inside is not run but becomes a graph.

        Allocation, synchronization and copies from pageable memory are errors inside.
        """
        graph = CapturedGraph(self)
        mode = self._runtime.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        self._call("cudaStreamBeginCapture", stream.handle, mode)
        try:
            yield graph
        except BaseException:
            with contextlib.suppress(EngineError):  # the first error is the one to tell
                self._call("cudaGraphDestroy", self._call("cudaStreamEndCapture", stream.handle))
            raise
        captured = self._call("cudaStreamEndCapture", stream.handle)
        try:
            graph.executable = self._call("cudaGraphInstantiate", captured, 0)
        finally:
            self._let_go("cudaGraphDestroy", captured)

    def launch(self, executable: Any, stream: Any) -> None:
        self._call("cudaGraphLaunch", executable, stream.handle)

    def destroy_graph(self, executable: Any) -> None:
        """See `destroy_event` about failures."""
        self._let_go("cudaGraphExecDestroy", executable)

    def destroy_event(self, event: Any) -> None:
        """Failures are not told: they mean that the context is broken, and it takes all along."""
        self._let_go("cudaEventDestroy", event)

    def _let_go(self, name: str, thing: Any) -> None:
        with contextlib.suppress(EngineError):
            self._call(name, thing)

    def _allocate(
        self, num_bytes: int, what: str, call: Callable[..., Any], *arguments: Any
    ) -> Any:
        try:
            with self.context:
                return call(*arguments)
        except self.driver.MemoryError:
            with self.context:
                free, total = self.driver.mem_get_info()
            remedy = (
                "close what else uses it (a desktop takes some 1000 MB), or export with fewer "
                "--tokens or a smaller recipe"
            )
            if free > num_bytes:
                remedy = f"they are in pieces; {FREE_MEMORY}"
            raise EngineError(
                f"{what}: {num_bytes / 1e6:.1f} MB of the GPU's memory are needed, "
                f"{free / 1e6:.1f} of {total / 1e6:.1f} MB are free: {remedy}"
            ) from None
        except self.driver.Error as error:
            raise EngineError(f"CUDA: memory for {what} failed: {error}; {BROKEN}") from error

    def _call(self, name: str, *arguments: Any) -> Any:
        with self.context:
            status, *values = getattr(self._runtime, name)(*arguments)
        if status != 0:
            word = getattr(status, "name", status)
            remedy = CUDA_ERRORS.get(int(status), BROKEN)
            raise EngineError(f"CUDA: {name} answered {word}; {remedy}")
        return values[0] if values else None

    def _drive(self, what: str, call: Callable[..., Any], *arguments: Any) -> Any:
        try:
            with self.context:
                return call(*arguments)
        except self.driver.Error as error:
            raise EngineError(f"CUDA: {what} failed: {error}; {BROKEN}") from error


class Owned:
    """A thing of pycuda's that is let go with the context current, on whichever thread that is."""

    def __init__(self, raw: Any, context: PrimaryContext) -> None:
        self.raw, self._context = raw, context

    @property
    def handle(self) -> int:
        """Of a stream."""
        return int(self.raw.handle)

    def __int__(self) -> int:
        return int(self.raw)

    def __del__(self) -> None:
        with contextlib.suppress(EngineError), self._context:
            del self.raw


class _PageLocked(Owned):
    """What an array on page-locked memory looks at."""

    @property
    def __array_interface__(self) -> Any:
        return self.raw.__array_interface__


class CapturedGraph:
    """A batch of work that is launched as one. Close it before the contexts that it refers to."""

    def __init__(self, cuda: Cuda) -> None:
        self._cuda = cuda
        self.executable: Any = None

    def launch(self, stream: Any) -> None:
        self._cuda.launch(self.executable, stream)

    def close(self) -> None:
        if self.executable is not None:
            self._cuda.destroy_graph(self.executable)
            self.executable = None
