"""Stand-ins for `cuda.bindings.runtime` and `cuda.bindings.driver`."""

from __future__ import annotations

import enum
from collections.abc import Callable
from types import ModuleType
from typing import Any

from tests.simulation.world import Capture, DriverError, Event, Unjoined, Violation, World, module


class Status(enum.IntEnum):
    cudaSuccess = 0
    cudaErrorInsufficientDriver = 35
    cudaErrorNotReady = 600
    cudaErrorStreamCaptureUnjoined = 904
    cudaErrorUnknown = 999


def bindings(world: World) -> ModuleType:
    def answer(name: str, function: Callable[..., Any]) -> Callable[..., tuple[Any, ...]]:
        def call(*arguments: Any) -> tuple[Any, ...]:
            if world.runtime_version > world.driver_version:
                return (Status.cudaErrorInsufficientDriver, None)
            try:
                if "Destroy" not in name and name != "cudaStreamEndCapture":
                    world.call(name)
                value = function(*arguments)
            except Unjoined:
                return (Status.cudaErrorStreamCaptureUnjoined, None)
            except DriverError:
                return (Status.cudaErrorUnknown, None)
            return (Status.cudaSuccess,) if value is None else (Status.cudaSuccess, value)

        return call

    def wait(stream: int, event: Event, flags: int) -> None:
        if flags:
            raise Violation("a wait for an event from outside of the capture")
        world.wait(stream, event)

    def create_event() -> Event:
        world.alive["event"] += 1
        return Event()

    def destroy_event(event: Event) -> None:
        if event.is_destroyed:
            raise Violation("an event is destroyed twice")
        event.is_destroyed = True
        world.alive["event"] -= 1

    def elapsed(start: Event, stop: Event) -> tuple[Any, ...]:
        if world.is_refused("cudaEventElapsedTime"):
            return Status.cudaErrorUnknown, 0.0
        if start.time_s is None or stop.time_s is None:
            return Status.cudaErrorNotReady, 0.0
        return Status.cudaSuccess, 1e3 * (stop.time_s - start.time_s)

    def instantiate(graph: Capture, flags: int) -> Capture:
        if flags:
            raise Violation("a graph is instantiated with a flag that nobody asked for")
        graph.is_alive = True
        world.alive["executable"] += 1
        return graph

    def destroy_graph(graph: Capture) -> None:
        world.alive["graph"] -= 1
        if not graph.is_alive:
            graph.ops.clear()  # which refer to the host's memory

    def destroy_executable(graph: Capture) -> None:
        graph.is_alive = False
        graph.ops.clear()  # with the arrays that it copied
        world.alive["executable"] -= 1

    class cudaStreamCaptureMode(enum.IntEnum):
        cudaStreamCaptureModeThreadLocal = 1

    def begin(stream: int, mode: cudaStreamCaptureMode) -> None:
        world.begin_capture(stream)

    calls: dict[str, Callable[..., Any]] = {
        "cudaEventCreate": create_event,
        "cudaEventDestroy": destroy_event,
        "cudaEventRecord": world.record,
        "cudaEventRecordWithFlags": lambda event, stream, flag: world.record_time(
            event, stream, external=flag == 1
        ),
        "cudaStreamWaitEvent": wait,
        "cudaStreamBeginCapture": begin,
        "cudaStreamEndCapture": lambda stream: world.end_capture(stream),
        "cudaGraphInstantiate": instantiate,
        "cudaGraphDestroy": destroy_graph,
        "cudaGraphLaunch": world.launch,
        "cudaGraphExecDestroy": destroy_executable,
    }
    return module(
        "cuda.bindings.runtime",
        cudaEventRecordDefault=0,
        cudaEventRecordExternal=1,
        cudaStreamCaptureMode=cudaStreamCaptureMode,
        cudaEventElapsedTime=elapsed,
        **{name: answer(name, call) for name, call in calls.items()},
    )


def driver_bindings(world: World) -> ModuleType:
    """What the runtime asks of the driver where pycuda has no name for it."""

    def set_flags(device: int, flags: int) -> tuple[Status]:
        assert device == 0
        if world.has_primary_context:
            raise Violation("flags are set for a context that exists already")
        world.primary_flags = flags
        return (Status.cudaSuccess,)

    return module(
        "cuda.bindings.driver",
        cuDevicePrimaryCtxSetFlags=set_flags,
        cuDevicePrimaryCtxGetState=lambda device: (
            Status.cudaSuccess,
            world.primary_flags,
            int(world.has_primary_context),
        ),
    )
