"""A policy without weights, cut for a board: its configuration, its graph, and the work of its
engines.

The graph is the one that an export writes, of modules on the meta device. Where there is no
tokenizer, the fixed texts of the prompt count as many tokens as the published one makes of them.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from tokenizers import Tokenizer

from export.forecast.config import ForecastConfig
from export.parts import EngineSizes, choose_layers
from export.tokens import LEAST_MARGIN, MULTIPLE
from models.config_file import configuration
from models.demo import CHECKPOINT
from models.families import family_of
from models.init import image_of
from models.layouts import runs
from models.networks.parts import LayersPerPart
from models.networks.work import Tokens, Work
from models.policy_config import PolicyConfig
from models.processor import read_image_config
from models.prompt_parts import PromptParts
from quant.recipes import Recipe
from runtime.graph import Graph
from runtime.image import ImageConfig, grid_of

INSTRUCTION = "put the spoon on the towel"
OWN_TOKENIZER = ("demo", "proxy", "readouts", "three-anchors")
"""Configurations with the vocabulary of the shipped policy."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Prompt:
    """What surrounds the images, and how many tokens stand behind the second."""

    parts: PromptParts
    tail: int


@dataclass(frozen=True, kw_only=True, slots=True)
class SizedPolicy:
    """A policy with all sizes fixed."""

    name: str
    config: PolicyConfig
    image_size: tuple[int, int]
    grid: tuple[int, int]
    slots: int
    used: Mapping[str, Tokens]
    """Of each language call, by its row in the graph: tokens that are no padding."""
    layers: LayersPerPart
    graph: Graph
    samples: int
    recut: Callable[[LayersPerPart], SizedPolicy]
    """The same policy with other layers per part."""

    def work(self, tokens: Tokens | None = None) -> dict[str, Work]:
        """Of every engine, padded unless `tokens` says which."""
        padded = Tokens.padded(self.slots, len(self.used))
        return family_of(self.config).engines_work(
            self.config, self.grid, tokens or padded, self.layers, self.samples
        )


def size_policy(asked: ForecastConfig) -> SizedPolicy:
    """
    Raises:
        ValueError: the configuration is none, or the prompt does not fit the tokens.
    """
    config, image, tokenizer = _found(asked)
    prompt = prompt_of(config, tokenizer)
    image_size = asked.image_size or (asked.size.image, asked.size.image)
    return size(
        config,
        name=str(asked.policy),
        prompt=prompt,
        image=image,
        image_size=image_size,
        slots=asked.tokens or _slots(asked, config, prompt, grid_of(*image_size[::-1], image)),
        layers=_layers(asked, config),
        samples=asked.samples,
    )


def size(
    config: PolicyConfig,
    *,
    name: str,
    prompt: Prompt,
    image: ImageConfig,
    image_size: tuple[int, int],
    slots: int,
    layers: LayersPerPart,
    samples: int = 1,
) -> SizedPolicy:
    """Cut a policy that has no weights."""
    family = family_of(config)
    cut = family.split(
        family.shapes(config), prompt.parts, image, image_size, slots, layers, samples=samples
    )
    calls = cut.used(prompt.tail)
    last = list(calls)[-1]
    if calls[last] > slots:
        raise ValueError(
            f"the prompt takes {calls[last]} {last} tokens with a usual instruction, but --tokens "
            f"is {slots}: raise it"
        )
    seen = itertools.accumulate(calls.values())
    return SizedPolicy(
        name=name,
        config=config,
        image_size=image_size,
        grid=grid_of(image_size[1], image_size[0], image),
        slots=slots,
        used={
            call: Tokens(new=new, seen=so_far)
            for (call, new), so_far in zip(calls.items(), seen, strict=True)
        },
        layers=layers,
        graph=cut.graph,
        samples=samples,
        recut=lambda other: size(
            config,
            name=name,
            prompt=prompt,
            image=image,
            image_size=image_size,
            slots=slots,
            layers=other,
            samples=samples,
        ),
    )


def cut_for_board(
    config: PolicyConfig, recipe: Recipe, limit: int | None, per_part: int | None
) -> LayersPerPart:
    """As an export for the board does."""
    return choose_layers(EngineSizes(config, recipe), per_part=per_part, limit=limit)


def _layers(asked: ForecastConfig, config: PolicyConfig) -> LayersPerPart:
    limit = asked.board_figures.largest_engine_bytes
    return cut_for_board(config, asked.made_recipe, limit, asked.layers_per_part)


def _slots(
    asked: ForecastConfig, config: PolicyConfig, prompt: Prompt, grid: tuple[int, int]
) -> int:
    """What is usual, or as an export takes it where the prompt needs more."""
    *others, last = family_of(config).fixed_tokens(config, prompt.parts, grid).values()
    needed = max([*others, last + prompt.tail])
    if needed <= asked.size.tokens:
        return asked.size.tokens
    return -(-(needed + LEAST_MARGIN) // MULTIPLE) * MULTIPLE


def _found(asked: ForecastConfig) -> tuple[PolicyConfig, ImageConfig, Path | None]:
    """The policy, its image settings, and its tokenizer's file if it is there."""
    folder = asked.checkpoint
    if folder is not None and runs.is_in(folder):
        run = runs.open_run(folder)
        return run.config, run.image, run.tokenizer
    config = configuration(asked.policy)
    if folder is None:
        own = CHECKPOINT / "tokenizer.json" if asked.config in OWN_TOKENIZER else None
        return config, image_of(config), own
    settings = folder / "preprocessor_config.json"
    image = read_image_config(settings) if settings.exists() else image_of(config)
    return config, image, folder / "tokenizer.json"


def prompt_of(config: PolicyConfig, tokenizer: Path | None = None) -> Prompt:
    """By a tokenizer's file, or as the published one would count if there is none."""
    if tokenizer is not None and tokenizer.exists():
        found = Tokenizer.from_file(str(tokenizer))
        parts = family_of(config).prompt(config, found)
        ids = parts.tail_ids(found, INSTRUCTION)
        return Prompt(parts=parts, tail=len(ids))
    parts, tail = family_of(config).published_prompt(config)
    return Prompt(parts=parts, tail=tail)
