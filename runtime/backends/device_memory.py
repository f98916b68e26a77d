"""A graph's tensors on the GPU: one allocation, a permanent place for each, staging on the host.

A version says that a tensor is still valid, so its bytes must be: no two tensors share memory, and
none ever moves. What a tick copies has a page-locked twin on the host, so that a captured graph can
copy it; nothing else has one, for a board's host and GPU share one memory.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..declarations import ALIGNMENT, ITEM_SIZES, Tensor
from ..errors import EngineError
from ..graph import Graph
from .cuda import Cuda


def layout(graph: Graph) -> tuple[dict[str, int], int]:
    """Bytes from the start of the allocation to each tensor that owns memory, and the total."""
    offsets, total = {}, 0
    for name in graph.roots:
        offsets[name] = total
        total += -(-graph.tensors[name].num_bytes // ALIGNMENT) * ALIGNMENT
    return offsets, total


def host_roots(graph: Graph) -> frozenset[str]:
    """Tensors that own memory of which the host reads or writes something in a tick.

    It runs the host functions, and reads the outputs.
    """
    ports = (p for s in graph.stages if s.function for p in (s.inputs, s.outputs))
    names = {name for port in ports for name in port.values() if name in graph.tensors}
    return frozenset(graph.extent(name)[0] for name in names.union(graph.outputs))


class DeviceMemory:
    """See `runtime.engine.Memory`. Uploads wait for the next launch; a download waits for the GPU.

    What the host wrote waits until a copy of it is known to have arrived: after an error it waits
    still, and whoever tries again copies it again. A tensor that no tick copies, which only checks
    ask for, gets pageable memory on the host when it is first asked for, and is copied at once.

    Raises:
        EngineError: the GPU has too little memory.
    """

    def __init__(self, graph: Graph, cuda: Cuda) -> None:
        self.graph, self._cuda = graph, cuda
        offsets, self.num_bytes = layout(graph)
        self.stream: Any = cuda.stream()
        self._block: Any = cuda.allocate(self.num_bytes, "the policy's tensors")
        cuda.clear(self._block, self.num_bytes)
        self._twins = {name: self._page_locked(name) for name in sorted(host_roots(graph))}
        self.page_locked_bytes = sum(array.nbytes for array in self._twins.values())
        self._locked = {n for n in graph.tensors if graph.extent(n)[0] in self._twins}
        self._arrays: dict[str, NDArray[Any]] = {}
        self._addresses: dict[str, int] = {}
        for name, tensor in graph.tensors.items():
            root, start, _ = graph.extent(name)
            offset = offsets[root] + start * ITEM_SIZES[tensor.dtype]
            self._addresses[name] = int(self._block) + offset
        extents = {name: graph.extent(name) for name in graph.tensors}
        self._touching = {n: _touching(extents, n) for n in extents}
        self._inside = {n: _inside(extents, n) for n in extents}
        self._waiting: dict[str, None] = {}
        self._behind: set[str] = set()

    def host(self, name: str) -> NDArray[Any]:
        if name not in self._arrays:
            root, start, stop = self.graph.extent(name)
            if root not in self._twins:
                tensor = self.graph.tensors[root]
                self._twins[root] = np.zeros(tensor.shape, _numpy_type(tensor))
            part = self._twins[root].reshape(-1)[start:stop]
            self._arrays[name] = part.reshape(self.graph.tensors[name].shape)
        return self._arrays[name]

    def address(self, name: str) -> int:
        """Of the tensor on the GPU."""
        return self._addresses[name]

    def is_page_locked(self, name: str) -> bool:
        """Whether a batch can copy it."""
        return name in self._locked

    def upload(self, name: str) -> None:
        if name in self._locked:
            self._waiting[name] = None
        else:
            self._cuda.copy_over(self._addresses[name], self.host(name))

    def download(self, name: str) -> None:
        if name in self._behind:
            self.flush()
            self._cuda.copy_back(self.host(name), self._addresses[name])
            self._behind -= self._inside[name]

    def copy(self, source: str, target: str) -> None:
        """On the main stream, where batches begin and end."""
        if not self._waiting.keys().isdisjoint(self._touching[source] | self._touching[target]):
            self.flush()
        self.written([target])
        num_bytes = self.graph.tensors[source].num_bytes
        self._cuda.copy_across(
            self._addresses[target], self._addresses[source], num_bytes, self.stream
        )

    @property
    def waiting(self) -> tuple[str, ...]:
        """What the host wrote and the GPU has not."""
        return tuple(self._waiting)

    def uploaded(self, names: Iterable[str]) -> None:
        """Copies of these tensors have arrived."""
        for name in names:
            del self._waiting[name]

    def flush(self) -> None:
        """Copy what waits, and wait for it."""
        waiting = self.waiting
        try:
            self.copy_in(waiting)
            self._cuda.synchronize(self.stream)
        except BaseException:
            self.drain()
            raise
        self.uploaded(waiting)

    def drain(self) -> None:
        """Wait for what was started before an error: that one is to be told, not another one."""
        with contextlib.suppress(EngineError):
            self._cuda.synchronize(self.stream)

    def copy_in(self, names: Iterable[str]) -> None:
        """To the GPU, on the main stream; done when that is synchronized."""
        for name in names:
            self._cuda.copy_in(self._addresses[name], self.host(name), self.stream)

    def copy_out(self, names: Iterable[str]) -> None:
        """To the host, likewise."""
        for name in names:
            self._cuda.copy_out(self.host(name), self._addresses[name], self.stream)

    def written(self, names: Iterable[str]) -> None:
        """Engines write these tensors, or may have: only the GPU knows them now."""
        for name in names:
            self._behind |= self._touching[name]

    def copied(self, names: Iterable[str]) -> None:
        """Copies of these tensors have arrived on the host."""
        for name in names:
            self._behind -= self._inside[name]

    def scratch(self, num_bytes: int) -> Any:
        """Memory for engines' intermediate results, at least one byte."""
        return self._cuda.allocate(max(num_bytes, ALIGNMENT), "the engines' scratch")

    def release(self, block: Any) -> None:
        """Give scratch memory back."""
        self._cuda.free(block)

    def close(self) -> None:
        """Give the memory back; nothing may use it any more."""
        if self._block is None:
            return
        self.drain()
        self._cuda.free(self._block)
        self._block = self.stream = None
        self._arrays.clear()
        self._twins.clear()  # page-locked memory goes with the last array on it

    def _page_locked(self, name: str) -> NDArray[Any]:
        tensor = self.graph.tensors[name]
        return self._cuda.page_locked(tensor.shape, _numpy_type(tensor))


def _numpy_type(tensor: Tensor) -> np.dtype[Any]:
    return np.dtype(np.uint16 if tensor.dtype == "bfloat16" else tensor.dtype)


Extents = Mapping[str, tuple[str, int, int]]


def _touching(extents: Extents, name: str) -> frozenset[str]:
    """Tensors that share a byte with `name`, itself among them."""
    root, start, stop = extents[name]
    return frozenset(n for n, (r, a, b) in extents.items() if r == root and a < stop and start < b)


def _inside(extents: Extents, name: str) -> frozenset[str]:
    """Tensors that are a part of `name`, itself among them."""
    root, start, stop = extents[name]
    return frozenset(
        n for n, (r, a, b) in extents.items() if r == root and start <= a and b <= stop
    )
