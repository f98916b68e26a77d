"""A policy as a dataflow graph: stages joined by tensors, fed by a handful of inputs.

What goes in: stages in the order they run, tensors with shapes, inputs by name. What comes out:
for every tensor and stage the set of inputs it depends on, and the order in which to run them for
a wanted leaf. Pure data and arithmetic; nothing here computes a policy.

A tensor may be a part of a larger one (`part_of`), so that a concatenation or a slice is a place in
memory and not a copy. Dependencies follow memory: a tensor depends on whatever writes any byte of
it, directly or through its parts.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property
from typing import Any

from msgspec import Struct, field

from .declarations import (
    ITEM_SIZES,
    PACES,
    DeclarationError,
    Input,
    Output,
    Pace,
    Tensor,
    check_inputs,
)


class GraphError(ValueError):
    """A graph whose stages, tensors and inputs do not fit together."""


def part_name(whole: str, index: int, count: int) -> str:
    """Of one of `count` parts or steps; what is in one piece keeps its name."""
    return whole if count == 1 else f"{whole}_{index}"


def whole_of(name: str) -> str:
    """What a numbered part or step is one of: `denoise` of `denoise_3`; otherwise `name`."""
    whole, _, number = name.rpartition("_")
    return whole if whole and number.isdecimal() else name


class Stage(Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """One call: of an engine (a compiled network) or of a named host function."""

    name: str
    engine: str | None = None
    function: str | None = None
    inputs: Mapping[str, str] = field(default_factory=dict)
    """Port name -> tensor, or for a host function also a graph input."""
    outputs: Mapping[str, str] = field(default_factory=dict)
    """Port name -> tensor."""
    params: Mapping[str, Any] = field(default_factory=dict)
    """Constants of a host function; see its entry in `runtime.functions.calls`."""

    @property
    def label(self) -> str:
        """What is called: many stages may share one."""
        return self.engine or self.function or ""


class Graph(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, dict=True):
    """Stages in running order.

    Raises:
        GraphError: on construction, if a name is unknown or used twice, a part lies outside its
            tensor, two stages write the same memory, a stage reads memory that no earlier stage
            writes, or a declaration contradicts itself.
    """

    inputs: Mapping[str, Input]
    outputs: Mapping[str, Output]
    """By the tensor's name. The first is what a tick is for."""
    tensors: Mapping[str, Tensor]
    stages: tuple[Stage, ...]

    def __post_init__(self) -> None:
        self._check_names()
        self._check_parts()
        self._check_writes()
        self._check_outputs()
        try:
            check_inputs(self.inputs, self.outputs)
        except DeclarationError as error:
            raise GraphError(str(error)) from None

    @property
    def sampled(self) -> str | None:
        """The tensor that holds several answers [K, ...], of which one is chosen; None if none."""
        return next((s.inputs["samples"] for s in self.stages if s.function == "medoid"), None)

    @property
    def target(self) -> str:
        """The output that a tick is for."""
        return next(iter(self.outputs))

    @cached_property
    def dependencies(self) -> dict[str, frozenset[str]]:
        """Inputs that each tensor depends on, in the order of `tensors`."""
        by_stage = self.stage_dependencies
        result: dict[str, frozenset[str]] = {}
        for name in self.tensors:
            writers = (by_stage[stage.name] for stage in self.writers(name))
            result[name] = frozenset().union(*writers)
        return result

    @property
    def listed_dependencies(self) -> dict[str, tuple[str, ...]]:
        """The same, as a manifest states them."""
        return {name: tuple(sorted(needs)) for name, needs in self.dependencies.items()}

    @cached_property
    def stage_dependencies(self) -> dict[str, frozenset[str]]:
        """Inputs that each stage depends on."""
        known: dict[str, frozenset[str]] = {}
        for stage in self.stages:
            needs: set[str] = set()
            for source in stage.inputs.values():
                if source in self.inputs:
                    needs.add(source)
                else:
                    needs.update(*(known[w.name] for w in self.writers(source)))
            known[stage.name] = frozenset(needs)
        return known

    @cached_property
    def phases(self) -> tuple[int, ...]:
        """Of every stage: even for host functions, odd for engines, never before its producers'.

        Stages run by phase, so that engine stages which no host function separates run together.
        """
        known: dict[str, int] = {}
        for stage in self.stages:
            sources = [s for s in stage.inputs.values() if s not in self.inputs]
            after = max((known[w.name] for s in sources for w in self.writers(s)), default=0)
            kind = 1 if stage.engine else 0
            known[stage.name] = after + (after - kind) % 2
        return tuple(known.values())

    @cached_property
    def rows(self) -> dict[str, str]:
        """Of every stage, what a reader sees it in: a chain of parts or steps is one thing.

        Names say it: engine stages `prefix_0`, `prefix_1` and so on are `prefix`, if each feeds the
        next, all depend on the same inputs, and nothing between them leaves the chain.
        """
        taken = {*self.inputs, *(stage.name for stage in self.stages)}
        behind: dict[str, frozenset[str]] = {}
        chains: dict[str, list[str]] = {}
        for stage in self.stages:
            tensors = (s for s in stage.inputs.values() if s not in self.inputs)
            feeding = {w.name for source in tensors for w in self.writers(source)}
            behind[stage.name] = frozenset(feeding).union(*(behind[name] for name in feeding))
            whole = whole_of(stage.name)
            if stage.engine is None or whole in taken:
                continue
            chain = chains.setdefault(whole, [])
            beside = frozenset[str]().union(*(behind[n] for n in feeding.difference(chain)))
            needs = self.stage_dependencies
            follows = chain and chain[-1] in feeding and needs[chain[0]] == needs[stage.name]
            if not chain or (follows and beside.isdisjoint(chain)):
                chain.append(stage.name)
        folded = {n: whole for whole, chain in chains.items() if len(chain) > 1 for n in chain}
        return {stage.name: folded.get(stage.name, stage.name) for stage in self.stages}

    @cached_property
    def networks(self) -> dict[str, str]:
        """Of every engine that is called, the network it is a part of: most stand alone.

        The engines of a chain (see `rows`) are one network if they are numbered alike.
        """
        calls: dict[str, dict[str, None]] = {}
        for stage in self.stages:
            if stage.engine is not None:
                calls.setdefault(self.rows[stage.name], {})[stage.engine] = None
        found = {engine: engine for engines in calls.values() for engine in engines}
        for engines in calls.values():
            wholes = {whole_of(engine) for engine in engines}
            if len(engines) > 1 and len(wholes) == 1 and wholes.isdisjoint(found):
                found |= dict.fromkeys(engines, wholes.pop())
        return found

    def writers(self, tensor: str) -> Iterator[Stage]:
        """Stages that write any byte of `tensor`."""
        root, start, stop = self.extent(tensor)
        for stage, (other, a, b) in self._writes:
            if other == root and a < stop and start < b:
                yield stage

    def extent(self, tensor: str) -> tuple[str, int, int]:
        """The memory of `tensor`: its outermost tensor, first element, one past the last."""
        name, offset = tensor, 0
        while (part := self.tensors[name].part_of) is not None:
            name, offset = part[0], offset + part[1]
        return name, offset, offset + self.tensors[tensor].size

    @cached_property
    def roots(self) -> tuple[str, ...]:
        """Tensors that own memory."""
        return tuple(n for n, t in self.tensors.items() if t.part_of is None)

    def needed_for(self, leaf: str) -> tuple[int, ...]:
        """Indices of the stages that `leaf` needs, in running order.

        Raises:
            GraphError: if `leaf` is no output of the graph.
        """
        if leaf not in self.outputs:
            raise GraphError(f"{leaf!r} is no output of this graph; it has {list(self.outputs)}")
        wanted, chosen = {leaf}, []
        index = {stage.name: i for i, stage in enumerate(self.stages)}
        while wanted:
            name = wanted.pop()
            for stage in self.writers(name):
                if index[stage.name] not in chosen:
                    chosen.append(index[stage.name])
                    wanted.update(s for s in stage.inputs.values() if s not in self.inputs)
        return tuple(sorted(chosen))

    def pace(self, needs: Iterable[str]) -> Pace:
        """How often something that depends on these inputs changes: as its fastest does."""
        return max((self.inputs[name].pace for name in needs), key=PACES.index, default="load")

    def kept_stages(self, source: str) -> frozenset[str]:
        """Stages that input `source` decides about: no other they depend on changes as often."""
        pace = PACES.index(self.inputs[source].pace)
        return frozenset(
            stage
            for stage, needs in self.stage_dependencies.items()
            if source in needs
            and all(PACES.index(self.inputs[n].pace) < pace for n in needs - {source})
        )

    def kept_bytes(self, source: str) -> int:
        """What a cache holds for as long as input `source` stays."""
        return self._kept_bytes[source]

    @cached_property
    def engine_outputs(self) -> tuple[str, ...]:
        """Tensors that engines write, in running order."""
        return tuple(n for stage in self.stages if stage.engine for n in stage.outputs.values())

    @cached_property
    def _kept_bytes(self) -> dict[str, int]:
        """Of every input; asked for in every tick that somebody watches."""
        kept = {source: self.kept_stages(source) for source in self.inputs}
        return {
            source: sum(
                (stop - start) * ITEM_SIZES[self.tensors[root].dtype]
                for stage, (root, start, stop) in self._writes
                if stage.name in stages
            )
            for source, stages in kept.items()
        }

    @cached_property
    def _writes(self) -> list[tuple[Stage, tuple[str, int, int]]]:
        return [(s, self.extent(t)) for s in self.stages for t in s.outputs.values()]

    def _check_names(self) -> None:
        names = [stage.name for stage in self.stages]
        if twice := sorted({n for n in names if names.count(n) > 1}):
            raise GraphError(f"stage names used twice: {twice}")
        if both := sorted(set(self.inputs) & self.tensors.keys()):
            raise GraphError(f"names of an input and of a tensor: {both}")
        for stage in self.stages:
            if (stage.engine is None) == (stage.function is None):
                raise GraphError(f"stage {stage.name!r} must name an engine or a function")
            for source in stage.inputs.values():
                if source not in self.tensors and source not in self.inputs:
                    raise GraphError(f"stage {stage.name!r} reads unknown {source!r}")
                if source in self.inputs and stage.engine:
                    raise GraphError(
                        f"stage {stage.name!r}: engines read tensors, {source!r} is an input"
                    )
            for target in stage.outputs.values():
                if target not in self.tensors:
                    raise GraphError(f"stage {stage.name!r} writes unknown tensor {target!r}")
        for name in self.outputs:
            if name not in self.tensors:
                raise GraphError(f"output {name!r} is no tensor")

    def _check_outputs(self) -> None:
        if not self.outputs:
            raise GraphError("a graph needs at least one output")
        for name, declared in self.inputs.items():
            if declared.similarity in self.outputs and self.tensors[declared.similarity].size != 1:
                raise GraphError(f"input {name!r}: its similarity must be one number")
        for name, output in self.outputs.items():
            if output.spread in self.outputs and self.tensors[output.spread].size != 1:
                raise GraphError(f"output {name!r}: its spread must be one number")
            shape = self.tensors[name].shape
            if output.axes and len(output.axes) != len(shape):
                raise GraphError(f"output {name!r} is {list(shape)}, its axes are {output.axes}")
            if output.units and len(output.units) != shape[-1]:
                raise GraphError(
                    f"output {name!r} has {len(output.units)} units for {shape[-1]} entries of its "
                    "last axis"
                )
            if output.step_s is not None and not 0 < output.step_s < 3600:
                raise GraphError(f"output {name!r}: step_s is {output.step_s}, above 0 is wanted")
            if output.every < 0:
                raise GraphError(f"output {name!r}: every is {output.every}, 0 or more is wanted")

    def _check_parts(self) -> None:
        for name, tensor in self.tensors.items():
            if tensor.dtype not in ITEM_SIZES:
                raise GraphError(f"tensor {name!r} has unknown dtype {tensor.dtype!r}")
            if not tensor.shape or any(side < 1 for side in tensor.shape):
                raise GraphError(f"tensor {name!r} has shape {list(tensor.shape)}")
            seen, at = {name}, tensor
            while at.part_of is not None:
                parent, offset = at.part_of
                if parent in seen or parent not in self.tensors:
                    raise GraphError(f"tensor {name!r} is part of {parent!r}, which cannot be")
                outer = self.tensors[parent]
                if offset < 0 or offset + at.size > outer.size or outer.dtype != at.dtype:
                    raise GraphError(f"tensor {name!r} does not lie inside {parent!r}")
                seen.add(parent)
                at = outer

    def _check_writes(self) -> None:
        written: dict[str, list[tuple[int, int, str]]] = {}
        for stage in self.stages:
            for source in stage.inputs.values():
                if source in self.inputs:
                    continue
                root, start, stop = self.extent(source)
                spans = written.get(root, [])
                inside = sum(max(0, min(b, stop) - max(a, start)) for a, b, _ in spans)
                if inside < stop - start:  # no two writers overlap, so their lengths add up
                    raise GraphError(
                        f"stage {stage.name!r} reads {source!r} before all of it is written"
                    )
            for target in stage.outputs.values():
                root, start, stop = self.extent(target)
                for a, b, other in written.setdefault(root, []):
                    if a < stop and start < b:
                        raise GraphError(
                            f"stages {other!r} and {stage.name!r} both write {target!r}"
                        )
                written[root].append((start, stop, stage.name))
