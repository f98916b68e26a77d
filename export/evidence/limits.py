"""How many times as fast as recomputing an exact cache can be, of a policy that remembers pictures.

In: a policy without weights. Out: FLOPs of a tick by what is new in it, counted as
`models.networks.work` does. The arithmetic does not depend on what runs it: padding is left out,
and a token of the decoder is kept if nothing before it changed. Behind the first picture that did,
every token is another, whatever is remembered of its picture.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from export.forecast.policy import SizedPolicy
from models.networks.work import Tokens
from runtime.graph import Graph, Stage


@dataclass(frozen=True, kw_only=True, slots=True)
class Tick:
    """What is new in it, by the names of inputs."""

    changed: frozenset[str]
    """Inputs that show another picture than in the tick before."""
    unseen: frozenset[str]
    """Of these, those whose picture no input has shown before."""
    is_cold: bool = False
    """Whether nothing is kept, constant text neither."""


def kinds(graph: Graph) -> dict[str, Tick]:
    """Ticks of an episode.

    `all`: every picture is new, and everything is recomputed. `first`: all show the same new one.
    `usual`: what was new before is older now, and a new one came. `waited`: pictures of the past
    are equal, for the robot stood still, and a new one came. `keyframe`: nothing but pictures of
    events changed, which were seen before.
    """
    pictures = frozenset(cone.source for cones in graph.cones.values() for cone in cones)
    source = {name: graph.inputs[name].source for name in pictures}
    now, past, kept = (
        frozenset(name for name in pictures if source[name] == wanted)
        for wanted in ("robot", "delay", "memory")
    )
    return {
        "all": Tick(changed=pictures, unseen=pictures, is_cold=True),
        "first": Tick(changed=pictures, unseen=now),
        "usual": Tick(changed=now | past, unseen=now),
        "waited": Tick(changed=now, unseen=now),
        "keyframe": Tick(changed=kept, unseen=frozenset()),
    }


def least_flops(policy: SizedPolicy, tick: Tick) -> dict[str, int]:
    """That any exact cache leaves to compute, by network."""
    tokens = _new_tokens(policy, tick)
    works = {call: policy.work(of) for call, of in tokens.items()}
    others = policy.work()
    found: dict[str, int] = {}
    for stage in _stages(policy.graph, tick):
        work = works.get(policy.graph.rows[stage.name], others)
        _add(found, policy.graph, stage, work[stage.engine or ""].flops)
    return found


def engine_flops(policy: SizedPolicy, tick: Tick) -> dict[str, int]:
    """That the engines of our graph compute, padding included, by network."""
    works, found = policy.work(), dict[str, int]()
    for stage in _stages(policy.graph, tick):
        _add(found, policy.graph, stage, works[stage.engine or ""].flops)
    return found


def leaf_flops(policy: SizedPolicy, leaf: str) -> dict[str, int]:
    """Of the engines that run for a leaf alone, behind a tick that did not ask for it, by
    network."""
    graph, works, found = policy.graph, policy.work(), dict[str, int]()
    for i in sorted({*graph.needed_for(leaf)} - {*graph.needed_for(graph.target)}):
        stage = graph.stages[i]
        if stage.engine is not None:
            _add(found, graph, stage, works[stage.engine].flops)
    return found


def _add(found: dict[str, int], graph: Graph, stage: Stage, flops: int) -> None:
    network = graph.networks[stage.engine or ""]
    found[network] = found.get(network, 0) + flops


def _stages(graph: Graph, tick: Tick) -> Iterator[Stage]:
    """Calls of engines that the tick cannot do without, in running order."""
    due = [name for name, output in graph.outputs.items() if output.every]
    needed = frozenset[int]().union(*map(graph.needed_for, [graph.target, *due]))
    spared = {
        i
        for cones in graph.cones.values()
        for cone in cones
        if cone.source not in tick.unseen
        for i in cone.stages
    }
    for i in sorted(needed - spared):
        stage = graph.stages[i]
        if stage.engine is not None and tick.changed & graph.stage_dependencies[stage.name]:
            yield stage


def _new_tokens(policy: SizedPolicy, tick: Tick) -> dict[str, Tokens]:
    """Of each call of the decoder, those that have to pass through it."""
    found, is_behind = {}, tick.is_cold
    for call, used in policy.used.items():
        row = 0 if is_behind else min(_rows(policy, call, tick), default=used.new)
        is_behind |= row < used.new
        found[call] = Tokens(new=used.new - row, seen=used.seen)
    return found


def _rows(policy: SizedPolicy, call: str, tick: Tick) -> Iterator[int]:
    """Where in a call of the decoder the changed pictures begin."""
    graph, width = policy.graph, policy.config.language.hidden_size
    read = {
        graph.extent(name)[0]
        for stage in graph.stages
        if graph.rows[stage.name] == call
        for name in stage.inputs.values()
    }
    for cone in (cone for cones in graph.cones.values() for cone in cones):
        for root, start, _ in map(graph.extent, cone.tensors):
            if cone.source in tick.changed and root in read:
                yield start // width
