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
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import msgspec
from msgspec import Struct, field

from .declarations import (
    ALIGNMENT,
    ITEM_SIZES,
    PACES,
    DeclarationError,
    Input,
    Output,
    Pace,
    Store,
    Tensor,
    check_inputs,
    check_outputs,
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


@dataclass(frozen=True, slots=True)
class Cone:
    """The stages that a member of a store needs, but for those that depend on nothing."""

    source: str
    """The one input that they depend on."""
    stages: tuple[int, ...]
    """In running order."""
    tensors: tuple[str, ...]
    """The member."""


class Graph(
    Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True, dict=True
):
    """Stages in running order.

    Raises:
        GraphError: on construction, if a name is unknown or used twice, a part lies outside its
            tensor, two stages write the same memory, a stage reads memory that no earlier stage
            writes, the members of a store are not alike, or a declaration contradicts itself.
    """

    inputs: Mapping[str, Input]
    outputs: Mapping[str, Output]
    """By the tensor's name. The first is what a tick is for."""
    tensors: Mapping[str, Tensor]
    stages: tuple[Stage, ...]
    stores: Mapping[str, Store] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._check_names()
        self._check_parts()
        self._check_writes()
        try:
            check_outputs(self.outputs, self.inputs, self.tensors)
            check_inputs(self.inputs, self.outputs)
        except DeclarationError as error:
            raise GraphError(str(error)) from None
        self._check_stores()

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
        for stage, _, (other, a, b) in self._writes:
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
        return self._behind([leaf])

    @cached_property
    def cones(self) -> dict[str, tuple[Cone, ...]]:
        """Of the members of every store."""
        return {n: tuple(map(self._cone, store.members)) for n, store in self.stores.items()}

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
                for stage, _, (root, start, stop) in self._writes
                if stage.name in stages
            )
            for source, stages in kept.items()
        }

    @cached_property
    def _writes(self) -> list[tuple[Stage, str, tuple[str, int, int]]]:
        """Stages, ports and what memory they write."""
        return [(s, port, self.extent(t)) for s in self.stages for port, t in s.outputs.items()]

    def _behind(self, tensors: Iterable[str]) -> tuple[int, ...]:
        """Indices of the stages that these tensors need, in running order."""
        wanted, chosen = {*tensors}, []
        index = {stage.name: i for i, stage in enumerate(self.stages)}
        while wanted:
            name = wanted.pop()
            for stage in self.writers(name):
                if index[stage.name] not in chosen:
                    chosen.append(index[stage.name])
                    wanted.update(s for s in stage.inputs.values() if s not in self.inputs)
        return tuple(sorted(chosen))

    def _cone(self, member: tuple[str, ...]) -> Cone:
        needs = sorted(frozenset[str]().union(*(self.dependencies[name] for name in member)))
        if len(needs) != 1:
            raise GraphError(f"{list(member)} depend on the inputs {needs}, and not on one")
        behind, by_stage = self._behind(member), self.stage_dependencies
        stages = tuple(i for i in behind if by_stage[self.stages[i].name])
        return Cone(needs[0], stages, member)

    def _forms(self, cone: Cone) -> list[Any]:
        """Of each stage, and then of the tensors, all that a twin of it has too.

        Where a tensor lies is a part of it: an engine may add up in another order elsewhere.
        """
        number = {self.stages[i].name: n for n, i in enumerate(cone.stages)}

        def place(name: str) -> Any:
            tensor, (_, start, _) = self.tensors[name], self.extent(name)
            return tensor.shape, tensor.dtype, start * ITEM_SIZES[tensor.dtype] % ALIGNMENT

        def source(name: str) -> Any:
            if name in self.inputs:
                return self.inputs[name].kind, self.inputs[name].shape, self.inputs[name].dtype
            root, start, stop = self.extent(name)
            return place(name), {
                (number.get(stage.name, stage.name), port, a - start)
                for stage, port, (other, a, b) in self._writes
                if other == root and a < stop and start < b
            }

        called = [self.stages[i] for i in cone.stages]
        forms: list[Any] = [
            (
                stage.engine,
                stage.function,
                msgspec.json.encode(stage.params, order="deterministic"),
                {port: source(name) for port, name in stage.inputs.items()},
                {port: place(name) for port, name in stage.outputs.items()},
            )
            for stage in called
        ]
        return forms + [source(name) for name in cone.tensors]

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

    def _check_stores(self) -> None:
        for name, store in self.stores.items():
            try:
                self._check_store(store)
            except GraphError as error:
                raise GraphError(f"store {name!r}: {error}") from None
        stages = [i for cones in self.cones.values() for cone in cones for i in cone.stages]
        if twice := sorted({self.stages[i].name for i in stages if stages.count(i) > 1}):
            raise GraphError(f"members of stores share the stages {twice}")
        held = [n for store in self.stores.values() for entry in store.entries for n in entry]
        written = [n for stage in self.stages for n in stage.outputs.values()]
        for i, name in enumerate(held):
            for other in (*held[:i], *written, *self.outputs):
                (root, start, stop), (r, a, b) = self.extent(name), self.extent(other)
                if root == r and a < stop and start < b:
                    raise GraphError(f"{name!r} is an entry of a store and meets {other!r}")

    def _check_store(self, store: Store) -> None:
        all_names = (*store.entries, *store.members)
        if not store.entries or not store.members or not all(all_names):
            raise GraphError("it needs entries and members, and a tensor in each")
        if unknown := sorted({n for names in all_names for n in names} - self.tensors.keys()):
            raise GraphError(f"unknown tensors {unknown}")
        tensors = [[self.tensors[n] for n in names] for names in all_names]
        for names, other in zip(all_names, tensors, strict=True):
            if [(t.shape, t.dtype) for t in other] != [(t.shape, t.dtype) for t in tensors[0]]:
                raise GraphError(f"{list(names)} are not of the shapes and types of an entry")
        first, *others = map(self._cone, store.members)
        for cone in (first, *others):
            self._check_inside(cone)
        for cone in others:
            if self._forms(cone) != self._forms(first):
                got, want = ([self.stages[i].name for i in c.stages] for c in (cone, first))
                raise GraphError(f"the stages {got} do not compute what {want} do")

    def _check_inside(self, cone: Cone) -> None:
        """A copied result leaves what is inside of the cone as it was: nobody else may read it."""
        own = {self.stages[i].name for i in cone.stages}
        ends = [self.extent(name) for name in cone.tensors]
        others = [s for s in self.stages if s.name not in own]
        reads = [(n, s.name) for s in others for n in s.inputs.values() if n in self.tensors]
        for name, reader in (*reads, *((n, "outputs") for n in self.outputs)):
            root, start, stop = self.extent(name)
            for stage, _, (r, a, b) in self._writes:
                a, b = max(a, start), min(b, stop)
                is_inside = stage.name in own and r == root and a < b
                if is_inside and not any(q == r and c <= a and b <= d for q, c, d in ends):
                    raise GraphError(
                        f"{name!r}, which {reader!r} reads, is written on the way to "
                        f"{list(cone.tensors)} by {stage.name!r}, and only they are remembered"
                    )
