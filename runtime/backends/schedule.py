"""Which engine stages may overlap on a device, decided from the graph alone.

A stage that reads bytes of another runs after it; all others may overlap. That is all: in a graph
nothing is written twice, and nothing is read before it is written.
A stage follows the one that feeds it on the same stream where it can; what runs beside the longest
chain gets a stream of its own, and one is enough for that: more would only share the same GPU.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ..graph import Graph

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
        stage.name: [o.name for o in stages[:i] if _overlap(graph, o.outputs, stage.inputs)]
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


def _overlap(graph: Graph, some: Mapping[str, str], others: Mapping[str, str]) -> bool:
    extents = [graph.extent(name) for name in some.values()]
    return any(
        root == r and start < b and a < stop
        for root, start, stop in extents
        for r, a, b in map(graph.extent, others.values())
    )
