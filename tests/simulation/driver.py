"""A stand-in for `pycuda.driver`."""

from __future__ import annotations

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


def driver(world: World) -> ModuleType:
    class Stream:
        def __init__(self) -> None:
            self.handle = world.new_stream()

        def __del__(self) -> None:
            world.alive["stream"] -= "handle" in vars(self)

        def synchronize(self) -> None:
            world.synchronize(self.handle)

    class DeviceAllocation:
        """Goes with the last reference to it, if nobody freed it before."""

        def __init__(self, size: int) -> None:
            world.call("mem_alloc")
            self.block = world.allocate(size, DEVICE)

        def __int__(self) -> int:
            return self.block.start

        def __del__(self) -> None:
            if "block" in vars(self) and not self.block.is_freed:
                world.num_dropped += 1
                world.forget(self.block)

        def free(self) -> None:
            world.free(self.block)

    def memset_d8(block: DeviceAllocation, value: int, size: int) -> None:
        world.call("memset_d8")
        world.bytes_at(int(block), size)[:] = value

    def pagelocked_zeros(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
        world.call("pagelocked_zeros")
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        return world.allocate(size, PINNED).bytes.view(dtype).reshape(shape)

    def host_span(array: np.ndarray) -> Span:
        block = world.block_at(array.ctypes.data, array.nbytes)
        if block is None or block.kind != PINNED:
            raise Violation("an asynchronous copy of pageable memory")
        return Span.of(array.ctypes.data, array.nbytes)

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

    def memcpy_dtoh(array: np.ndarray, address: int) -> None:
        world.call("memcpy_dtoh")
        if world.capture is not None:
            raise Violation("a synchronous copy inside a capture")
        if world.now.ops:
            raise Violation("a synchronous copy beside work that is not done")
        array.reshape(-1).view(np.uint8)[:] = world.bytes_at(address, array.nbytes)
        world.copies.append(("out", address, array.nbytes))

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

    return module(
        "pycuda.driver",
        Device=Device,
        Error=DriverError,
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
