"""Faults at a chosen stage, on any backend: before it, after it, half-written outputs, NaN.

faults = Faults(monkeypatch)
policy = runtime.load(bundle, backend=lambda _: FaultyBackend(OnnxRuntimeBackend(), faults))
faults.arm("suffix", "half")

`FaultyBackend(TensorRTBackend(make_plan), faults, world)` does the same on the simulated GPU, where
an engine runs when somebody waits for it, in a replayed graph too. Host functions count as stages.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from runtime.engine import Backend, Engine, Launch, Memory
from runtime.errors import EngineError
from runtime.functions.calls import make_call
from runtime.functions.function import HostFunction, Resources
from runtime.graph import Graph, Stage
from tests.simulation.world import World

Kind = Literal["before", "after", "half", "nan", "one nan"]
KINDS: tuple[Kind, ...] = get_args(Kind)
"""An error before the stage, an error after it, an error with the second half of every output
overwritten, all outputs NaN without an error, one element of every output NaN without an error."""


class InjectedFault(EngineError):
    """An error that was asked for."""


class Faults:
    """What goes wrong next.

    Args:
        monkeypatch: wraps `runtime.functions.calls.make_call`, so that host functions fail too.
    """

    def __init__(self, monkeypatch: Any) -> None:
        self.graph: Graph | None = None
        self.fired: list[tuple[str, Kind]] = []
        """Stages and kinds, in the order in which they went wrong."""
        self._armed: dict[str, list[Kind]] = {}
        monkeypatch.setattr("runtime.interpreter.make_call", self._make_call)

    @property
    def is_armed(self) -> bool:
        """Whether a fault still waits for its stage to run."""
        return any(self._armed.values())

    def arm(self, stage: str, kind: Kind, *, times: int = 1) -> None:
        """The next runs of `stage` go wrong."""
        assert self.graph is not None
        assert stage in [s.name for s in self.graph.stages], stage
        assert kind in KINDS, kind
        self._armed[stage] = [kind] * times

    def disarm(self) -> None:
        """Nothing goes wrong any more."""
        self._armed.clear()

    def run(self, stage: str, compute: Callable[[], None], outputs: Sequence[np.ndarray]) -> None:
        """Run a stage, and spoil it if that was asked for."""
        waiting = self._armed.get(stage)
        if not waiting:
            compute()
            return
        kind = waiting.pop()
        self.fired.append((stage, kind))
        if kind == "before":
            raise InjectedFault(f"stage {stage!r}: a fault was injected before it")
        compute()
        for array in outputs:
            _spoil(array.reshape(-1), kind)
        if kind in ("after", "half"):
            raise InjectedFault(f"stage {stage!r}: a fault was injected ({kind})")

    def _make_call(self, stage: Stage, resources: Resources) -> HostFunction:
        function = make_call(stage, resources)

        def call(values: Mapping[str, Any], out: Mapping[str, np.ndarray]) -> None:
            self.run(stage.name, lambda: function(values, out), list(out.values()))

        return call


class FaultyBackend:
    """A backend whose stages fail on demand.

    Args:
        world: of the simulated GPU, if `inner` runs on it.
    """

    def __init__(self, inner: Backend, faults: Faults, world: World | None = None) -> None:
        self.inner, self.faults, self.world = inner, faults, world
        self.name, self.reads_onnx = inner.name, inner.reads_onnx

    @property
    def bytes_read(self) -> int:
        return self.inner.bytes_read

    @property
    def waits(self) -> str:
        return self.inner.waits

    def memory(self, graph: Graph) -> Memory:
        self.faults.graph = graph
        return self.inner.memory(graph)

    def engine(self, path: Path) -> Engine:
        return self.inner.engine(path)

    def launcher(
        self, graph: Graph, runs: Mapping[str, Callable[[], None]], memory: Memory
    ) -> Launch:
        written = {s.name: list(s.outputs.values()) for s in graph.stages if s.engine}
        if self.world is None:
            wrapped = {
                stage: self._wrapped(stage, run, [memory.host(name) for name in written[stage]])
                for stage, run in runs.items()
            }
            return self.inner.launcher(graph, wrapped, memory)
        stages = {memory.address(n): s for s, names in written.items() for n in names}  # type: ignore[attr-defined]
        self.world.run_engine = lambda compute, outputs: self.faults.run(
            stages[outputs[0].ctypes.data], compute, outputs
        )
        return self.inner.launcher(graph, runs, memory)

    def settle(self) -> None:
        self.inner.settle()

    def close(self) -> None:
        self.inner.close()

    def _wrapped(
        self, stage: str, run: Callable[[], None], outputs: Sequence[np.ndarray]
    ) -> Callable[[], None]:
        return lambda: self.faults.run(stage, run, outputs)


def _spoil(flat: np.ndarray, kind: Kind) -> None:
    is_float = np.issubdtype(flat.dtype, np.floating)
    if kind == "half":
        flat[len(flat) // 2 :] = 77
    elif kind == "nan" and is_float:
        flat[:] = np.nan
    elif kind == "one nan" and is_float:
        flat[len(flat) // 2] = np.nan
