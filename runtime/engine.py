"""What the interpreter needs of a machine: memory with permanent addresses, and engines on it.

Three Protocols, implemented per backend (`onnxruntime_engine.py` is the one for any CPU). Every
implementation must pass `tests/runtime/test_engine_conformance.py`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from numpy.typing import NDArray

from .declarations import Tensor
from .graph import Graph

Launch = Callable[[tuple[str, ...], frozenset[str]], Mapping[str, float]]
"""(engine stages in order, tensors) -> seconds of each stage.

Runs the stages. Of the tensors, those that these stages wrote are visible to the host afterwards.
After an error the same call may be made again: what the host uploaded is not lost.
"""


class Memory(Protocol):
    """All tensors of a graph, each at an address that never changes.

    Distinct tensors never share bytes unless one is part of the other. Contents start as zeros.
    """

    def host(self, name: str) -> NDArray[Any]:
        """The tensor as the host sees it: always the same array."""

    def upload(self, name: str) -> None:
        """Make what the host wrote visible to engines."""

    def download(self, name: str) -> None:
        """Make what engines wrote visible to the host."""

    def copy(self, source: str, target: str) -> None:
        """Copy a tensor into another of its shape and dtype, after all that was launched and
        uploaded before, and before all that is launched later."""


class Engine(Protocol):
    """A compiled network. Weights exist once, however often it is bound."""

    @property
    def inputs(self) -> Mapping[str, Tensor]:
        """Shape and dtype of every input port."""

    @property
    def outputs(self) -> Mapping[str, Tensor]:
        """Shape and dtype of every output port."""

    def bind(
        self, inputs: Mapping[str, str], outputs: Mapping[str, str], memory: Memory
    ) -> Callable[[], None]:
        """Bind every port to a tensor of `memory`, once.

        Returns:
            A function that runs the engine on these buffers. It allocates nothing for them.

        Raises:
            EngineError: a port is missing or unknown, or a shape or dtype does not fit.
        """


class Backend(Protocol):
    """A kind of machine."""

    name: str
    reads_onnx: bool
    """Whether it opens the ONNX files that it is given the paths of, which then are verified."""

    @property
    def bytes_read(self) -> int:
        """What it has read of engines or plans so far."""

    @property
    def waits(self) -> str:
        """How the host waits for it; `not applicable` where the host computes.

        A measurement has to state it: `block`, `spin`, or `auto` where the driver decides.
        """

    def memory(self, graph: Graph) -> Memory:
        """Allocate every tensor of `graph`."""

    def engine(self, path: Path) -> Engine:
        """Load an engine of a *verified* bundle.

        Raises:
            EngineError: if the file cannot be loaded here.
        """

    def launcher(
        self, graph: Graph, runs: Mapping[str, Callable[[], None]], memory: Memory
    ) -> Launch:
        """How stages run together.

        Args:
            graph: that `memory` was allocated for.
            runs: what `Engine.bind` returned, by stage.
        """

    def settle(self) -> None:
        """Every kind of tick has run. From now on none may be spent on preparations."""

    def close(self) -> None:
        """Give everything back that engines and memory hold outside of Python."""


def in_order(graph: Graph, runs: Mapping[str, Callable[[], None]], memory: Memory) -> Launch:
    """The launcher of a machine whose engines run at once and share the host's memory."""

    def launch(stages: tuple[str, ...], wanted: frozenset[str]) -> Mapping[str, float]:
        seconds = {}
        start = time.perf_counter()
        for name in stages:
            runs[name]()
            end = time.perf_counter()
            seconds[name], start = end - start, end
        return seconds

    return launch
