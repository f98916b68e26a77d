"""A forecast: ticks with and without the cache, memory, rate and energy of a policy on a board.

In: a configuration, a recipe, a board. Out: figures, each of them a band where it is a time: the
roofline over what published engines reach of it (`quant.boards.EFFICIENCY`). Left out: host
functions (resizing an image takes some milliseconds), launches, and that two streams may overlap.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from export.forecast.config import ForecastConfig, refusal
from export.forecast.policy import SizedPolicy, cut_for_board, size_policy
from export.forecast.stages import (
    Cost,
    StageCost,
    leaf_costs,
    rates_used,
    stage_costs,
    total,
    weights_of,
)
from models.family import layer_names
from quant.boards import EFFICIENCY, Board
from quant.recipes import RECIPES, Recipe
from runtime.backends.device_memory import host_roots, layout
from runtime.declarations import from_source
from runtime.graph import Graph

FLOAT_BYTES = 4


@dataclass(frozen=True, kw_only=True, slots=True)
class Band:
    """Of a time, from what the best published engine would take to what the least efficient did."""

    best: float
    worst: float

    def times(self, factor: float) -> Band:
        return Band(best=self.best * factor, worst=self.worst * factor)

    @classmethod
    def of(cls, roofline_ms: float) -> Band:
        low, high = EFFICIENCY
        return cls(best=roofline_ms / high, worst=roofline_ms / low)


@dataclass(frozen=True, kw_only=True, slots=True)
class Memory:
    """That a loaded policy keeps resident, in bytes; host and GPU share it."""

    weights: int
    tensors: int
    """Of the graph on the device."""
    twins: int
    """Page-locked on the host."""
    scratch: int
    """The largest intermediate results of a stage, for each stream: an estimate."""
    embedding_rows: int
    """Of the memory-mapped table, those that a prompt reads."""

    @property
    def total(self) -> int:
        return self.weights + self.tensors + self.twins + self.scratch + self.embedding_rows


@dataclass(frozen=True, kw_only=True, slots=True)
class Forecast:
    """See the fields. `None` where a figure of the board is missing."""

    policy: SizedPolicy
    recipe: Recipe
    board_name: str
    board: Board
    stages: list[StageCost]
    leaves: list[StageCost]
    """What runs only if somebody asks for it."""
    warm: Cost
    """A tick with all kept that no input of every tick decides about."""
    cold: Cost
    """A tick with every input changed; what depends on none ran at load."""
    memory: Memory
    table_bytes: int
    """Of the embedding table, which stays on the disk."""
    kept_bytes: int
    """That the cache holds for as long as `kept_for` stays."""
    largest_engine: tuple[str, int]
    """Its name and its weights in bytes."""
    recipes: Mapping[str, int]
    """Bytes resident by recipe: all that this board can run."""
    rates: tuple[str, ...]
    """Figures of the board that products run at."""

    @property
    def kept_for(self) -> str:
        """What a stage that is kept waits for: latches, or what the operator says."""
        return " and ".join(slow_inputs(self.policy.graph))

    @property
    def room(self) -> float | None:
        """Bytes of the board's memory that are left; negative if it does not fit."""
        return self.room_for(self.recipe.name)

    def room_for(self, recipe: str) -> float | None:
        """The same for another recipe."""
        memory = self.board.memory_gb
        return None if memory is None else memory * 1e9 - self.recipes[recipe]

    @property
    def fitting(self) -> list[str]:
        """Recipes whose resident memory the board has, the smallest first."""
        rooms = {name: self.room_for(name) for name in self.recipes}
        fit = [name for name, room in rooms.items() if room is not None and room >= 0]
        return sorted(fit, key=lambda name: self.recipes[name])

    @property
    def missing(self) -> list[str]:
        """What nobody said of the board, and what it leaves open."""
        left_open = dict.fromkeys(sorted(self.cold.missing), "no time, no rate and no energy")
        for figure, words in (("memory_gb", "nor whether it fits"), ("power_w", "no energy")):
            if getattr(self.board, figure) is None:
                left_open[figure] = words
        sources = self.board.sources
        return [
            f"{self.board_name} has no {figure} ({sources.get(figure, 'missing')}): {words}"
            for figure, words in left_open.items()
        ]

    def band(self, tick: Cost) -> Band | None:
        """Milliseconds."""
        return None if tick.roofline_ms is None else Band.of(tick.roofline_ms)

    @property
    def rate_hz(self) -> Band | None:
        """Warm ticks a second, the best first."""
        band = self.band(self.warm)
        return band and Band(best=1e3 / band.best, worst=1e3 / band.worst)

    @property
    def actions_hz(self) -> Band | None:
        """Actions a second if a whole chunk is used before the next tick ends."""
        return self.rate_hz and self.rate_hz.times(self.policy.config.chunk[0])

    @property
    def energy_j(self) -> Band | None:
        """At most so many joules for a warm tick: the module at its limit all the while."""
        band, power_w = self.band(self.warm), self.board.power_w
        return None if band is None or power_w is None else band.times(power_w / 1e3)

    def to_json(self) -> str:
        """One line."""
        return json.dumps(_figures(self))


def forecast(asked: ForecastConfig) -> Forecast:
    """
    Raises:
        ValueError: the configuration is none, the recipe does not fit it, or the prompt does not
            fit the tokens.
    """
    policy, recipe, board = size_policy(asked), asked.made_recipe, asked.board_figures
    stages = stage_costs(policy, recipe, board)
    memory = resident(policy, recipe)
    rules = recipe.decide(layer_names(policy.config))
    engines = {n: weights_of(w, rules, recipe.base) for n, w in policy.work().items()}
    largest = max(engines, key=lambda name: engines[name])
    table = policy.config.language.vocab_size * policy.config.language.hidden_size
    return Forecast(
        policy=policy,
        recipe=recipe,
        board_name=asked.board_name,
        board=board,
        stages=stages,
        leaves=leaf_costs(policy, recipe, board),
        warm=total(stage.cost for stage in stages if not stage.is_kept),
        cold=total(stage.cost for stage in stages if stage.needs),
        memory=memory,
        table_bytes=table * FLOAT_BYTES,
        kept_bytes=sum(map(policy.graph.kept_bytes, slow_inputs(policy.graph))),
        largest_engine=(largest, engines[largest]),
        recipes=_recipes(policy, recipe, memory, board, asked.layers_per_part),
        rates=rates_used(policy, recipe),
    )


def slow_inputs(graph: Graph) -> list[str]:
    """Latches, or where there is none what the operator says."""
    return [*(from_source(graph.inputs, "latch") or from_source(graph.inputs, "operator"))]


def resident(policy: SizedPolicy, recipe: Recipe) -> Memory:
    """What a policy keeps in memory while it runs."""
    works, graph = policy.work(), policy.graph
    rules = recipe.decide(layer_names(policy.config))
    return Memory(
        weights=sum(weights_of(work, rules, recipe.base) for work in works.values()),
        tensors=layout(graph)[1],
        twins=_twins(graph),
        scratch=sum(sorted(w.scratch_numbers * FLOAT_BYTES for w in works.values())[-2:]),
        embedding_rows=2 * policy.slots * policy.config.language.hidden_size * FLOAT_BYTES,
    )


def _twins(graph: Graph) -> int:
    return sum(graph.tensors[name].num_bytes for name in host_roots(graph))


def _recipes(
    policy: SizedPolicy, recipe: Recipe, memory: Memory, board: Board, per_part: int | None
) -> dict[str, int]:
    """Bytes resident by recipe; other recipes may be cut otherwise, which moves some tensors."""
    found = {recipe.name: memory.total}
    for name, make in RECIPES.items():
        other = make()
        if name in found or other.target != board.target or refusal(other, board):
            continue
        limit = board.largest_engine_bytes
        try:
            layers = cut_for_board(policy.config, other, limit, per_part)
        except ValueError:  # found for the layers of another policy
            continue
        found[name] = resident(policy.recut(layers), other).total
    return found


def _figures(made: Forecast) -> dict[str, Any]:
    policy, memory, board = made.policy, made.memory, made.board
    ticks = {"warm": made.warm, "cold": made.cold}
    return {
        "config": policy.name,
        "recipe": made.recipe.name,
        "board": made.board_name,
        "figures": {name: getattr(board, name) for name in board.sources},
        "sources": dict(board.sources),
        "image_size": policy.image_size,
        "patches": policy.grid,
        "tokens": {
            "slots": policy.slots,
            **{call: used.new for call, used in policy.used.items()},
        },
        "efficiency": EFFICIENCY,
        "stages": {
            stage.name: {"kept": stage.is_kept, **_cost(stage.cost)} for stage in made.stages
        },
        "leaves": {stage.name: _cost(stage.cost) for stage in made.leaves},
        "ticks": {
            name: {**_cost(tick), "ms": _band(made.band(tick))} for name, tick in ticks.items()
        },
        "rate_hz": _band(made.rate_hz),
        "actions_hz": _band(made.actions_hz),
        "energy_j_at_most": _band(made.energy_j),
        "memory": {name: getattr(memory, name) for name in memory.__slots__}
        | {"total": memory.total, "room": made.room, "kept": made.kept_bytes},
        "recipes": dict(made.recipes),
        "fitting": made.fitting,
        "missing": made.missing,
    }


def _cost(cost: Cost) -> dict[str, Any]:
    names = ("calls", "flops", "useful_flops", "weight_bytes", "port_bytes", "roofline_ms")
    return {name: getattr(cost, name) for name in names}


def _band(band: Band | None) -> list[float] | None:
    return None if band is None else [band.best, band.worst]
