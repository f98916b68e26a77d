"""A bundle on ONNX Runtime whose engines are together larger than the memory.

Engines are loaded when a stage calls them, and those that were called last stay, up to a limit. A
bundle below it runs as it always does. The trade-off: above it, a tick waits for files.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path

from runtime.backends.onnxruntime import OnnxRuntimeBackend, OnnxRuntimeEngine, file_bytes
from runtime.engine import Memory

RESIDENT_BYTES = 2 << 30
"""Of the files of engines that are loaded at once. No engine that can be exported is larger."""


class ResidentBackend(OnnxRuntimeBackend):
    """Implements `runtime.engine.Backend`."""

    def __init__(self, limit: int = RESIDENT_BYTES) -> None:
        super().__init__()
        self._limit = limit
        self._loaded: OrderedDict[Path, OnnxRuntimeEngine] = OrderedDict()

    @property
    def resident_bytes(self) -> int:
        """Of the files of the engines that are loaded."""
        return sum(engine.num_bytes for engine in self._loaded.values())

    def engine(self, path: Path) -> ResidentEngine:  # type: ignore[override]
        return ResidentEngine(self, path)

    def load(self, path: Path) -> OnnxRuntimeEngine:
        """The engine of a file; those not called for the longest time make room for it."""
        if path in self._loaded:
            self._loaded.move_to_end(path)
            return self._loaded[path]
        while self._loaded and file_bytes(path) + self.resident_bytes > self._limit:
            self._loaded.popitem(last=False)
        self._loaded[path] = super().engine(path)
        return self._loaded[path]

    def close(self) -> None:
        self._loaded.clear()


class ResidentEngine:
    """Implements `runtime.engine.Engine`, and may be loaded many times."""

    def __init__(self, backend: ResidentBackend, path: Path) -> None:
        loaded = backend.load(path)
        self.inputs, self.outputs = loaded.inputs, loaded.outputs
        self._backend, self._path = backend, path

    def bind(
        self, inputs: Mapping[str, str], outputs: Mapping[str, str], memory: Memory
    ) -> Callable[[], None]:
        """Bound anew for each run: what is bound would keep its engine loaded."""

        def run() -> None:
            self._backend.load(self._path).bind(inputs, outputs, memory)()

        return run
