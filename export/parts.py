"""How the trunks of a policy are cut into engines, and what each engine weighs.

In: a configuration, a recipe, and a limit: bytes that one engine may hold. Out: the layers per
part, and bytes of every engine. A layer counts as its recipe writes it; what lies beside the
layers of a trunk, such as the merger, counts to the part that holds it. Scratch memory and the
constants of a graph are left out, a few megabytes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table
from rich.text import Text

from export.config import PartsConfig
from models.config_file import configuration
from models.families import family_of
from models.family import layer_names
from models.networks.parts import WHOLE, LayersPerPart, cut
from models.networks.work import Tokens, Work
from models.policy_config import PolicyConfig
from quant.boards import find_board
from quant.recipes import RECIPES, Recipe, float32
from quant.targets import held_bytes
from runtime.graph import part_name

_GRID, _TOKENS = (2, 2), Tokens.padded(1)
"""Any: weights do not depend on them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineSize:
    """What one engine holds."""

    layers: range | None
    """Of a trunk."""
    parameters: int
    num_bytes: int
    """Of its weights, in the formats of a recipe."""


class EngineSizes:
    """Weighs the parts of one policy in one recipe, by its configuration."""

    def __init__(self, config: PolicyConfig, recipe: Recipe) -> None:
        self._config, self._base = config, recipe.base
        self._rules = recipe.decide(layer_names(config))
        self._family = family_of(config)
        self.depths = self._family.depths(config)

    def part(self, trunk: str, layers: range) -> EngineSize:
        """Some layers of a trunk in an engine of their own."""
        return self._engine(
            self._family.trunk_work(self._config, trunk, layers, _GRID, _TOKENS), layers
        )

    def engines(self, layers: LayersPerPart) -> dict[str, EngineSize]:
        """All engines of the policy, so cut."""
        ranges = {
            part_name(trunk, i, len(parts)): part
            for trunk, depth in self.depths.items()
            for parts in [cut(depth, layers.get(trunk))]
            for i, part in enumerate(parts)
        }
        works = self._family.engines_work(self._config, _GRID, _TOKENS, layers)
        return {name: self._engine(work, ranges.get(name)) for name, work in works.items()}

    def most_layers(self, trunk: str, limit: float) -> int | None:
        """Layers that a part may have for none of the trunk's to weigh above `limit`; at least 1.

        Returns:
            None if the trunk may stay in one piece.
        """
        depth = self.depths[trunk]
        for count in range(depth, 1, -1):
            if all(self.part(trunk, r).num_bytes <= limit for r in cut(depth, count)):
                return None if count == depth else count
        return None if depth == 1 else 1

    def _engine(self, work: Work, layers: range | None) -> EngineSize:
        return EngineSize(
            layers=layers,
            parameters=work.parameters,
            num_bytes=round(held_bytes(work, self._rules, self._base)),
        )


MESSAGE_BYTES = 2**31 - 2**26
"""Of an engine's weights in float32, as one is traced: its graph is a protobuf message then, all
weights included, and such a message holds less than 2 GiB. What is left is for the nodes."""


def tracing_layers(config: PolicyConfig) -> LayersPerPart:
    """Layers per part of every trunk that an export can take, whatever board it is for.

    In as few parts as that takes, of the same depth: the largest is what takes memory.
    """
    sizes = EngineSizes(config, float32())
    most = choose_layers(sizes, per_part=None, limit=MESSAGE_BYTES)
    return {
        trunk: -(-sizes.depths[trunk] // len(cut(sizes.depths[trunk], count)))
        for trunk, count in most.items()
    }


def smaller(one: LayersPerPart, other: LayersPerPart) -> LayersPerPart:
    """Parts that hold no more layers than either says."""
    return {
        trunk: min(layers[trunk] for layers in (one, other) if trunk in layers)
        for trunk in {**one, **other}
    }


def choose_layers(sizes: EngineSizes, *, per_part: int | None, limit: int | None) -> LayersPerPart:
    """Layers per part of every trunk.

    Args:
        per_part: layers of the language model; no part of another trunk weighs more then. If it
            has no more layers, nothing is cut.
        limit: bytes of one engine, where nothing else is said; None is no limit.
    """
    depth = sizes.depths["language"]
    if per_part is not None and per_part < depth:
        limit = max(sizes.part("language", part).num_bytes for part in cut(depth, per_part))
    elif per_part is not None or limit is None:
        return WHOLE
    most = {trunk: sizes.most_layers(trunk, limit) for trunk in sizes.depths}
    if per_part is not None:
        most["language"] = per_part
    return {trunk: count for trunk, count in most.items() if count is not None}


def print_parts(config: PartsConfig) -> None:
    """Print the engines of a policy without weights, for a board, recipe by recipe.

    Raises:
        ValueError: the configuration is none, or the recipe does not fit it.
    """
    policy = configuration(config.config)
    board = find_board(config.board)
    console = Console()
    for name in [config.recipe] if config.recipe else sorted(RECIPES):
        recipe = RECIPES[name]()
        if config.recipe is None and recipe.target != board.target:
            continue
        sizes = EngineSizes(policy, recipe)
        limit = board.largest_engine_bytes
        layers = choose_layers(sizes, per_part=config.layers_per_part, limit=limit)
        engines = sizes.engines(layers)
        console.print(_table(f"{config.config} for {config.board}, recipe {name}", engines))
        for line in _summary(engines, limit):
            console.print(line, soft_wrap=True, markup=False)


def largest_of(engines: Mapping[str, int]) -> str:
    """The engine that needs the largest single block, in words."""
    name = max(engines, key=lambda engine: engines[engine])
    return f"the largest single block is {name}, {_mb(engines[name])}"


def _summary(engines: Mapping[str, EngineSize], limit: int | None) -> Iterator[str]:
    sizes = {name: engine.num_bytes for name, engine in engines.items()}
    yield f"{len(engines)} engines, {_mb(sum(sizes.values()))}; {largest_of(sizes)}"
    if limit is None:
        yield "no limit of one engine is known for this board: nothing has to be cut"
        return
    yield f"an engine of {_mb(limit)} was seen to build on this board (quant.boards.SEEN_TO_BUILD)"
    for name, engine in engines.items():
        if engine.num_bytes > limit:
            yield f"{name} is {_mb(engine.num_bytes)}, above that: it may fail to build"


def _table(title: str, engines: Mapping[str, EngineSize]) -> Table:
    table = Table(title=Text(title), title_justify="left")
    for column in ("engine", "layers", "weights", "bytes"):
        table.add_column(column, justify="left" if column == "engine" else "right")
    for name, engine in engines.items():
        layers = "-" if engine.layers is None else f"{engine.layers[0]}..{engine.layers[-1]}"
        table.add_row(name, layers, f"{engine.parameters:,}", f"{engine.num_bytes:,}")
    return table


def _mb(num_bytes: float) -> str:
    return f"{num_bytes / 1e6:.1f} MB"
