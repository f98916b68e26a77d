"""How the trunks of a policy are cut into engines, and what each engine weighs.

In: a policy, which may be without weights, a recipe, and a limit: bytes that one engine may hold.
Out: the layers per part, and bytes of every engine. A layer counts as its recipe writes it; what
lies beside the layers of a trunk, such as the merger, counts to the part that holds it. Scratch
memory and the constants of a graph are left out, a few megabytes.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from rich.text import Text
from torch import nn

from export.config import PartsConfig
from models.anchorvla4d.config import PolicyConfig
from models.anchorvla4d.parts import (
    WHOLE,
    LanguagePart,
    LayersPerPart,
    SpatialPart,
    VisionPart,
    cut,
)
from models.anchorvla4d.policy import AnchorVLA4D
from models.anchorvla4d.presets import CONFIGS
from quant.apply import decide
from quant.recipes import RECIPES, Base, Recipe, Rule
from quant.targets import BOARDS, ITEM_BYTES, Product
from runtime.graph import part_name

TRUNKS = ("vision", "language", "spatial")
OTHERS = {
    "project": ("info_sharing.info_sharing.proj_embed",),
    "condition": (
        "info_sharing.final_projection",
        "action_head.norm_after_pool",
        "action_head.state_linear",
        "action_head.combine.*",
        "action_head.cond_obs_emb",
        "action_head.*adaLN_modulation.*",
    ),
    "denoise": (
        "action_head",  # positions of a chunk's steps
        "action_head.x_embedder",
        "action_head.blocks.*.attn.*",
        "action_head.blocks.*.mlp.*",
        "action_head.final_layer.linear",
    ),
}
"""Engines that are no trunks, and the layers that they hold, as patterns of `fnmatch`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineSize:
    """What one engine holds."""

    layers: range | None
    """Of a trunk."""
    parameters: int
    num_bytes: int
    """Of its weights, in the formats of a recipe."""


class EngineSizes:
    """Weighs the parts of one policy in one recipe; its weights may be on the meta device."""

    def __init__(self, model: AnchorVLA4D, recipe: Recipe, rules: Mapping[str, Rule]) -> None:
        self._model = model
        self._modules = dict(model.named_modules())
        self._bytes = {
            name: _num_bytes(module, rules.get(name), recipe.base)
            for name, module in self._modules.items()
        }
        self._names = {id(module): name for name, module in self._modules.items()}
        self.depths = {
            "vision": model.config.vision.depth,
            "language": model.config.language.num_hidden_layers,
            "spatial": model.config.spatial.depth,
        }

    def part(self, trunk: str, layers: range) -> EngineSize:
        """Some layers of a trunk in an engine of their own."""
        make: dict[str, Callable[[], nn.Module]] = {
            "vision": lambda: VisionPart(self._model.vlm.visual, layers, (2, 2)),
            "language": lambda: LanguagePart(self._model.vlm.model, layers),
            "spatial": lambda: SpatialPart(self._model.info_sharing, layers),
        }
        inside = {self._names.get(id(module)) for module in make[trunk]().modules()}
        return self._engine({name for name in inside if name is not None}, layers)

    def engines(self, layers: LayersPerPart) -> dict[str, EngineSize]:
        """All engines of the policy, so cut."""
        found: dict[str, EngineSize] = {}
        for trunk in TRUNKS:
            parts = cut(self.depths[trunk], getattr(layers, trunk))
            for i, part in enumerate(parts):
                found[part_name(trunk, i, len(parts))] = self.part(trunk, part)
        for engine, patterns in OTHERS.items():
            names = {n for n in self._modules for p in patterns if fnmatch.fnmatchcase(n, p)}
            found[engine] = self._engine(names, None)
        return found

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

    def _engine(self, names: Collection[str], layers: range | None) -> EngineSize:
        own = (p for name in names for p in self._modules[name].parameters(recurse=False))
        return EngineSize(
            layers=layers,
            parameters=sum(p.numel() for p in own),
            num_bytes=sum(self._bytes[name] for name in names),
        )


def choose_layers(sizes: EngineSizes, *, per_part: int | None, limit: int | None) -> LayersPerPart:
    """Layers per part of every trunk.

    Args:
        per_part: layers of the language model; no part of another trunk weighs more then. If it
            has no more layers, nothing is cut.
        limit: bytes of one engine, where nothing else is said; None is no limit.
    """
    depth = sizes.depths["language"]
    if per_part is not None and per_part < depth:
        language: int | None = per_part
        limit = max(sizes.part("language", part).num_bytes for part in cut(depth, per_part))
    elif per_part is not None or limit is None:
        return WHOLE
    else:
        language = sizes.most_layers("language", limit)
    others = {trunk: sizes.most_layers(trunk, limit) for trunk in ("vision", "spatial")}
    return LayersPerPart(language=language, **others)


def print_parts(config: PartsConfig) -> None:
    """Print the engines of a policy without weights, for a board, recipe by recipe.

    Raises:
        ValueError: the configuration is none, or the recipe does not fit it.
    """
    found = CONFIGS.get(config.config)
    policy = found() if found else PolicyConfig.from_json(Path(config.config))
    with torch.device("meta"):
        model = AnchorVLA4D(policy)
    board = BOARDS[config.board]
    console = Console()
    for name in [config.recipe] if config.recipe else sorted(RECIPES):
        recipe = RECIPES[name]()
        if config.recipe is None and recipe.target != board.target:
            continue
        sizes = EngineSizes(model, recipe, decide(recipe, model))
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
    yield f"an engine of {_mb(limit)} was seen to build on this board (quant.targets.SEEN_TO_BUILD)"
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


def _num_bytes(module: nn.Module, rule: Rule | None, base: Base) -> int:
    """Of a module's own weights, as an engine holds them."""
    item = ITEM_BYTES["float32" if base == "float32" else "float"]
    own = sum(p.numel() for p in module.parameters(recurse=False))
    if rule is None or rule.format == "float32":  # norms and the like stay float32
        return int(own * ITEM_BYTES["float32"])
    if rule.format == "float" or not isinstance(module, nn.Linear):
        return int(own * item)
    bias = 0 if module.bias is None else module.bias.numel()
    product = Product(module.in_features, module.out_features, rows=1, calls=1)
    return int(product.num_bytes(rule.format) + bias * item)
