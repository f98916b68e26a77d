"""What one tick's stages multiply, read and take, on one board in one recipe.

A stage's time is the sum of the rooflines of its layers, which run one after another, and that of
its attention, which is charged with what goes through the stage's ports. So no stage is faster than
that. A figure that the board lacks leaves the time open, and is named.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import reduce

from export.forecast.policy import SizedPolicy
from models.family import layer_names
from models.networks.work import Work
from quant.boards import Board
from quant.recipes import Base, Recipe, Rule
from quant.targets import (
    ITEM_BYTES,
    MissingFigureError,
    Product,
    held_bytes,
    item_bytes,
    rate_of,
    roofline_ms,
)
from runtime.graph import Stage

ACTIVATIONS = "bf16_tflops"
"""Rate of products between activations: they are in the base format in every recipe for a board."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Cost:
    """Of a stage, or of several."""

    calls: int
    """Of engines."""
    flops: int
    useful_flops: int
    """Those that are not spent on padding."""
    weight_bytes: int
    """Read from memory by the calls, scales and tables included."""
    port_bytes: int
    """Inputs and outputs of the calls, keys and values included."""
    roofline_ms: float | None
    """None where a figure is missing."""
    missing: frozenset[str] = frozenset()
    """Figures of the board that it takes to know the time."""

    @property
    def num_bytes(self) -> int:
        return self.weight_bytes + self.port_bytes

    @property
    def intensity(self) -> float:
        """FLOPs a byte."""
        return self.flops / self.num_bytes if self.num_bytes else 0.0

    def __add__(self, other: Cost) -> Cost:
        times = (self.roofline_ms, other.roofline_ms)
        known = [time for time in times if time is not None]
        return Cost(
            calls=self.calls + other.calls,
            flops=self.flops + other.flops,
            useful_flops=self.useful_flops + other.useful_flops,
            weight_bytes=self.weight_bytes + other.weight_bytes,
            port_bytes=self.port_bytes + other.port_bytes,
            roofline_ms=sum(known) if len(known) == len(times) else None,
            missing=self.missing | other.missing,
        )


NOTHING = Cost(calls=0, flops=0, useful_flops=0, weight_bytes=0, port_bytes=0, roofline_ms=0.0)


@dataclass(frozen=True, kw_only=True, slots=True)
class StageCost:
    """A row of the forecast: a stage, or the parts or steps of a chain."""

    name: str
    network: str
    cost: Cost
    needs: frozenset[str]
    """Inputs that it depends on."""
    is_kept: bool
    """Whether it waits longer than a tick: no input that changes every tick decides about it."""


def total(costs: Iterable[Cost]) -> Cost:
    """Of all of them, one after another."""
    return reduce(Cost.__add__, costs, NOTHING)


def weights_of(work: Work, rules: Mapping[str, Rule], base: Base) -> int:
    """Bytes of an engine's constants, as its file stores them."""
    return round(held_bytes(work, rules, base) + work.tables * item_bytes("float", base))


def stage_costs(policy: SizedPolicy, recipe: Recipe, board: Board) -> list[StageCost]:
    """Of every engine stage that the actions need, in running order; chains are one row."""
    return _costs(policy, recipe, board, policy.graph.needed_for(policy.graph.target))


def leaf_costs(policy: SizedPolicy, recipe: Recipe, board: Board) -> list[StageCost]:
    """Likewise, of those that run only if somebody asks for an output that no action needs."""
    graph = policy.graph
    asked = {i for leaf in graph.outputs for i in graph.needed_for(leaf)}
    return _costs(policy, recipe, board, sorted(asked - {*graph.needed_for(graph.target)}))


def _costs(
    policy: SizedPolicy, recipe: Recipe, board: Board, stages_at: Iterable[int]
) -> list[StageCost]:
    graph, rules = policy.graph, recipe.decide(layer_names(policy.config))
    padded = policy.work()
    used = {call: policy.work(tokens) for call, tokens in policy.used.items()}
    rows: dict[str, list[Stage]] = {}
    for index in stages_at:
        stage = graph.stages[index]
        if stage.engine is not None:
            rows.setdefault(graph.rows[stage.name], []).append(stage)
    found = []
    for name, stages in rows.items():
        useful = used.get(name, padded)
        needs = graph.stage_dependencies[stages[0].name]
        costs = (
            _cost(policy, stage, padded, useful, rules, recipe.base, board) for stage in stages
        )
        found.append(
            StageCost(
                name=name,
                network=graph.networks[stages[0].engine or ""],
                cost=total(costs),
                needs=needs,
                is_kept=graph.pace(needs) != "tick",
            )
        )
    return found


def _cost(
    policy: SizedPolicy,
    stage: Stage,
    padded: Mapping[str, Work],
    useful: Mapping[str, Work],
    rules: Mapping[str, Rule],
    base: Base,
    board: Board,
) -> Cost:
    assert stage.engine is not None
    work = padded[stage.engine]
    tensors = policy.graph.tensors
    ports = sum(tensors[t].num_bytes for t in (*stage.inputs.values(), *stage.outputs.values()))
    beside = work.beside * ITEM_BYTES["float32"] + work.tables * item_bytes("float", base)
    times: list[float] = []
    missing: set[str] = set()
    for layer in work.layers:
        rule = rules[layer.name]
        try:
            times.append(Product.of(layer).time_ms(board, rule.format))
        except MissingFigureError as error:
            missing.add(error.args[0])
    times.append(roofline_ms(board, work.attention_flops, ports + beside, rate=ACTIVATIONS))
    return Cost(
        calls=1,
        flops=work.flops,
        useful_flops=useful[stage.engine].flops,
        weight_bytes=weights_of(work, rules, base),
        port_bytes=ports,
        roofline_ms=None if missing else sum(times),
        missing=frozenset(missing),
    )


def rates_used(policy: SizedPolicy, recipe: Recipe) -> tuple[str, ...]:
    """Figures of a board that the recipe's products run at, the fastest kind first."""
    rules = recipe.decide(layer_names(policy.config))
    found = {rate_of(rule.format) for rule in rules.values()} | {ACTIVATIONS}
    return tuple(
        rate for rate in ("int8_tops", "fp8_tflops", "bf16_tflops", "fp32_tflops") if rate in found
    )
