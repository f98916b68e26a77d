"""A stand-in for `pycuda.driver`: every call needs a context that is current on its thread."""

from __future__ import annotations

import functools
from collections.abc import Callable
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np

from tests.simulation.world import (
    DEVICE,
    PINNED,
    DeviceFull,
    DriverError,
    Op,
    Span,
    Violation,
    World,
    module,
)


class HostAllocation:
    """What an array on page-locked memory looks at; the memory goes with it."""

    def __init__(self, world: World, shape: tuple[int, ...], dtype: Any) -> None:
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        self.world, self.block = world, world.allocate(size, PINNED)
        self.__array_interface__ = self.block.bytes.view(dtype).reshape(shape).__array_interface__

    def __del__(self) -> None:
        if "block" in vars(self):
            self.world.need_context_to_let_go("page-locked memory")
            self.world.forget(self.block)


def driver(world: World) -> ModuleType:
    def in_context(call: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(call)
        def checked(*arguments: Any) -> Any:
            world.need_context(call.__name__)
            return call(*arguments)

        return checked

    class Stream:
        @in_context
        def __init__(self) -> None:
            self.handle = world.new_stream()

        def __del__(self) -> None:
            if "handle" in vars(self):
                world.need_context_to_let_go("a stream")
                world.alive["stream"] -= 1

        @in_context
        def synchronize(self) -> None:
            world.synchronize(self.handle)

    class DeviceAllocation:
        """Goes with the last reference to it, if nobody freed it before."""

        @in_context
        def __init__(self, size: int) -> None:
            world.call("mem_alloc")
            self.block = world.allocate(size, DEVICE)

        def __int__(self) -> int:
            return self.block.start

        def __del__(self) -> None:
            if "block" in vars(self) and not self.block.is_freed:
                world.need_context_to_let_go("memory on the GPU")
                world.num_dropped += 1
                world.forget(self.block)

        @in_context
        def free(self) -> None:
            world.free(self.block)

    @in_context
    def mem_get_info() -> tuple[int, int]:
        return world.free_bytes, 8 << 30

    @in_context
    def memset_d8(address: int, value: int, size: int) -> None:
        world.call("memset_d8")
        world.bytes_at(address, size)[:] = value

    @in_context
    def pagelocked_zeros(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
        world.call("pagelocked_zeros")
        return np.asarray(HostAllocation(world, shape, dtype))

    def host_span(array: np.ndarray) -> Span:
        block = world.block_at(array.ctypes.data, array.nbytes)
        if block is None or block.kind != PINNED:
            raise Violation("an asynchronous copy of pageable memory")
        return Span.of(array.ctypes.data, array.nbytes)

    @in_context
    def memcpy_htod_async(address: int, array: np.ndarray, stream: Stream) -> None:
        world.call("memcpy_htod_async")
        source = array.reshape(-1).view(np.uint8)
        given: list[bytes] = []

        def begin() -> None:
            given[:] = [source.tobytes()]

        def run() -> None:
            if source.tobytes() != given[0]:
                raise Violation("the host wrote into memory that was being copied")
            world.bytes_at(address, array.nbytes)[:] = source
            world.copies.append(("in", address, array.nbytes))

        target = Span.of(address, array.nbytes, array.dtype.name)
        world.submit(Op(stream.handle, run, (host_span(array),), (target,), begin=begin))

    @in_context
    def memcpy_dtoh_async(array: np.ndarray, address: int, stream: Stream) -> None:
        world.call("memcpy_dtoh_async")
        target = array.reshape(-1).view(np.uint8)

        def begin() -> None:
            target[:] = 0xFF  # until somebody waited, these are no numbers

        def run() -> None:
            target[:] = world.bytes_at(address, array.nbytes)
            world.copies.append(("out", address, array.nbytes))

        source = Span.of(address, array.nbytes, array.dtype.name)
        world.submit(Op(stream.handle, run, (source,), (host_span(array),), begin=begin))

    @in_context
    def memcpy_dtod_async(target: int, source: int, size: int, stream: Stream) -> None:
        world.call("memcpy_dtod_async")
        inside = Span.of(source, size)
        kinds = {known.dtype for known in world.types if known.overlaps(inside)}
        kind = kinds.pop() if len(kinds) == 1 else None

        def run() -> None:
            world.bytes_at(target, size)[:] = world.bytes_at(source, size)
            world.copies.append(("across", target, size))

        spans = Span.of(source, size, kind), Span.of(target, size, kind)
        world.submit(Op(stream.handle, run, spans[:1], spans[1:]))

    @in_context
    def memcpy_htod(address: int, array: np.ndarray) -> None:
        world.call("memcpy_htod")
        if world.capture is not None:
            raise Violation("a synchronous copy inside a capture")
        if world.now.ops:
            raise Violation("a synchronous copy beside work that is not done")
        world.bytes_at(address, array.nbytes)[:] = array.reshape(-1).view(np.uint8)
        world.note_types((Span.of(address, array.nbytes, array.dtype.name),))
        world.copies.append(("in", address, array.nbytes))

    @in_context
    def memcpy_dtoh(array: np.ndarray, address: int) -> None:
        world.call("memcpy_dtoh")
        if world.capture is not None:
            raise Violation("a synchronous copy inside a capture")
        if world.now.ops:
            raise Violation("a synchronous copy beside work that is not done")
        array.reshape(-1).view(np.uint8)[:] = world.bytes_at(address, array.nbytes)
        world.copies.append(("out", address, array.nbytes))

    class Context:
        push, pop = staticmethod(world.push), staticmethod(world.pop)

    class Device:
        def __init__(self, number: int) -> None:
            assert number == 0

        def retain_primary_context(self) -> Context:
            world.has_primary_context = True
            return Context()

        def name(self) -> str:
            return world.gpu

        def compute_capability(self) -> tuple[int, int]:
            return 8, 7

        def get_attribute(self, attribute: str) -> int:
            assert attribute == "multiprocessors"
            return world.num_sms

    return module(
        "pycuda.driver",
        Device=Device,
        Error=DriverError,
        MemoryError=DeviceFull,
        init=lambda: None,
        get_driver_version=lambda: world.driver_version,
        device_attribute=SimpleNamespace(MULTIPROCESSOR_COUNT="multiprocessors"),
        Stream=Stream,
        mem_get_info=mem_get_info,
        mem_alloc=DeviceAllocation,
        memset_d8=memset_d8,
        pagelocked_zeros=pagelocked_zeros,
        memcpy_htod_async=memcpy_htod_async,
        memcpy_dtod_async=memcpy_dtod_async,
        memcpy_htod=memcpy_htod,
        memcpy_dtoh_async=memcpy_dtoh_async,
        memcpy_dtoh=memcpy_dtoh,
    )
