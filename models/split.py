"""A policy cut into engines, and the graph that joins them: what every family's `split` returns.

The graph says which tensor goes where; what has to be recomputed when follows from it alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch

from models.networks.engines import EngineSpec
from runtime.declarations import Tensor
from runtime.graph import Graph, Stage, part_name, whole_of

ACTIONS = "actions"
"""The graph's target: a chunk in robot units."""
DENOISED = "denoised_actions"
"""What the head makes, in robot units: a chunk, or several of which one is chosen."""
TOKENS, TOKENIZER = "tokens", "tokenizer.json"
"""The table of token embeddings, and the file that makes ids of a text."""
ResizeOn = Literal["host", "engine"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Split:
    """A policy as engines and a graph."""

    engines: Mapping[str, EngineSpec]
    graph: Graph
    tables: Mapping[str, torch.Tensor]
    """[rows, D] that host functions read."""
    slots: int
    """Tokens per call of the language engine, S; a call's cache is what the call before it wrote,
    so P = S."""
    fixed: Mapping[str, int]
    """Of each language call, in order, the tokens that every prompt has; the tail is behind those
    of the last one."""

    @property
    def max_tail(self) -> int:
        """Tokens that the tail may take."""
        return self.slots - list(self.fixed.values())[-1]

    def used(self, tail: int) -> dict[str, int]:
        """Tokens of each language call that are no padding, for a tail of so many."""
        last = list(self.fixed)[-1]
        return {call: count + tail * (call == last) for call, count in self.fixed.items()}

    def padded_share(self, tail: int) -> dict[str, float]:
        """Share of padding per language call, for a tail of so many tokens."""
        return {call: round(1 - n / self.slots, 4) for call, n in self.used(tail).items()}


class GraphBuilder:
    """Collects tensors and stages in running order."""

    def __init__(self, engines: Mapping[str, EngineSpec], patches: Mapping[str, Any]) -> None:
        self.engines = engines
        self.patches = patches
        self.tensors: dict[str, Tensor] = {}
        self.stages: list[Stage] = []

    def parts(self, network: str) -> list[EngineSpec]:
        """Its engines, in the order they are called."""
        return [spec for name, spec in self.engines.items() if whole_of(name) == network]

    def chain(
        self,
        network: str,
        name: str,
        inputs: Mapping[str, str],
        outputs: Mapping[str, str],
        own: Sequence[str] = (),
    ) -> None:
        """The parts of a network in turn: what one puts out as `x_next` is `x` of those behind it.

        Args:
            inputs: port -> tensor; a part takes those that it has ports for.
            outputs: likewise.
            own: ports for which each part has a tensor of its own.
        """
        parts, at_hand = self.parts(network), dict(inputs)
        for i, part in enumerate(parts):
            numbered = partial(part_name, index=i, count=len(parts))
            passed = {
                port: numbered(f"{name}_{port.removesuffix('_next')}")
                for port in part.outputs
                if port.endswith("_next")
            }
            made = {port: outputs[port] for port in part.outputs if port not in passed}
            self.engine(
                numbered(network),
                numbered(name),
                {p: numbered(at_hand[p]) if p in own else at_hand[p] for p in part.inputs},
                passed | {p: numbered(t) if p in own else t for p, t in made.items()},
            )
            at_hand |= {port.removesuffix("_next"): t for port, t in passed.items()}

    def tensor(self, name: str, shape: tuple[int, ...]) -> None:
        self.tensors[name] = Tensor(shape=shape)

    def rows(self, name: str, parent: str, start: int, count: int | None = None) -> None:
        """Rows of a matrix, to the end if `count` is left out."""
        total, width = self.tensors[parent].shape
        count = total - start if count is None else count
        self.tensors[name] = Tensor(shape=(count, width), part_of=(parent, start * width))

    def slice(self, name: str, parent: str, index: int) -> None:
        """One entry along the first axis."""
        shape = self.tensors[parent].shape[1:]
        size = Tensor(shape=shape).size
        self.tensors[name] = Tensor(shape=shape, part_of=(parent, index * size))

    def image(self, name: str) -> None:
        """Patches of an image, and their vision tokens with what else the vision engine makes."""
        patches, pixels = f"{name}_patches", f"{name}_pixels"
        if "pixels" in self.engines:
            self.tensors[pixels] = self.engines["pixels"].inputs["image"]
            self.call("copy", {"value": name}, {"value": pixels})
            self.engine("pixels", patches, {"image": pixels}, {"patches": patches})
        else:
            self.tensor(patches, self.parts("vision")[0].inputs["patches"].shape)
            self.call("patches", {"image": name}, {"patches": patches}, self.patches)
        made = (p for part in self.parts("vision") for p in part.outputs if not p.endswith("_next"))
        outputs = {port: f"{name}_{port}" for port in made}
        self.chain("vision", f"{name}_vision", {"patches": patches}, outputs)

    def embed(self, target: str, ids: Sequence[int]) -> None:
        """Rows of constant text."""
        self.call("embed", {}, {"embeddings": target}, {"table": TOKENS, "ids": list(ids)})

    def call(
        self,
        function: str,
        inputs: Mapping[str, str],
        outputs: Mapping[str, str],
        params: Mapping[str, Any] | None = None,
        name: str = "",
    ) -> None:
        """A host function, by default named after what it writes."""
        name = name or next(iter(outputs.values()))
        self.stages.append(
            Stage(name=name, function=function, inputs=inputs, outputs=outputs, params=params or {})
        )

    def engine(
        self, engine: str, name: str, inputs: Mapping[str, str], outputs: Mapping[str, str]
    ) -> None:
        for port, tensor in outputs.items():
            spec = self.engines[engine].outputs[port]
            self.tensors.setdefault(tensor, spec)
        self.stages.append(Stage(name=name, engine=engine, inputs=inputs, outputs=outputs))
