"""Which engine stages may overlap on a device, decided from the graph alone.

Stages that touch the same bytes, one of them writing, run in their order; all others may overlap.
A stage follows the one that feeds it on the same stream where it can; what runs beside the longest
chain gets a stream of its own, and one is enough for that: more would only share the same GPU.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from .graph import Graph, Stage

NUM_STREAMS = 2


@dataclass(frozen=True, slots=True)
class Schedule:
    """Of a graph's engine stages."""

    stream: Mapping[str, int]
    """Of each stage; 0 is the main one."""
    after: Mapping[str, tuple[str, ...]]
    """Stages of other streams that a stage must wait for, if they run in the same batch."""


def plan(graph: Graph) -> Schedule:
    """Streams and waits for every engine stage of `graph`."""
    stages = [stage for stage in graph.stages if stage.engine]
    needs = {
        stage.name: [other.name for other in stages[:i] if _conflict(graph, other, stage)]
        for i, stage in enumerate(stages)
    }
    stream: dict[str, int] = {}
    last: dict[int, str] = {}
    for stage in stages:
        feeding = [s for s, name in last.items() if name in needs[stage.name]]
        beside = NUM_STREAMS - 1 if needs[stage.name] else 0
        chosen = min(feeding, default=beside)
        stream[stage.name], last[chosen] = chosen, stage.name
    after = {
        name: tuple(other for other in earlier if stream[other] != stream[name])
        for name, earlier in needs.items()
    }
    return Schedule(stream, after)


def _conflict(graph: Graph, one: Stage, other: Stage) -> bool:
    """Whether their order matters."""
    return (
        _overlap(graph, one.outputs, other.inputs)
        or _overlap(graph, one.inputs, other.outputs)
        or _overlap(graph, one.outputs, other.outputs)
    )


def _overlap(graph: Graph, some: Mapping[str, str], others: Mapping[str, str]) -> bool:
    extents = [graph.extent(name) for name in some.values()]
    return any(
        root == r and start < b and a < stop
        for root, start, stop in extents
        for r, a, b in map(graph.extent, others.values())
    )
