"""What verbs that gather evidence are asked for, beside those in `export.config`: no torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tyro.conf import Positional

from models.demo import BLINK_CHECKPOINT, BLINK_EPISODES
from models.families import CONFIGS
from quant.recipes import RECIPES

DEPTH = "depth.json"
FULL_SIZE = "full-size.json"
RECALL = "recall-demo.json"
BLINK_OPTIONS: dict[str, Any] = {
    "image_size": (112, 112),
    "tokens": 72,
    "calibration": BLINK_EPISODES,
}
"""How the demo policy with a memory is exported wherever it is."""
PUBLISHED_IMAGE = (252, 252)
"""Width and height of the camera image in pixels: no resizing, 18 x 18 patches of 14."""
CALIBRATED_ON = 8
"""Observations, and as many others judge."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DepthConfig:
    """Compare one tick of our stages with the libraries' at full depth, layer by layer.

    Needs no checkpoint: weights are random, drawn when a layer runs and dropped behind it.

    example: python -m export depth --config demo
    """

    config: str = "full"
    """A config.json, or a named configuration: demo, full, proxy, xlerobot."""

    image_size: tuple[int, int] = (256, 256)
    """Width and height of the camera image in pixels."""

    layers_per_stage: int | None = 1
    """Of vision, language and spatial encoder; None leaves them whole."""

    seed: int = 0
    """Of the weights."""

    results: Path | None = None
    """Folder for a JSON file with errors, machine and versions."""

    def __post_init__(self) -> None:
        if self.config not in CONFIGS and not Path(self.config).exists():
            raise ValueError(
                f"unknown configuration {self.config!r}; there are {sorted(CONFIGS)}, or name a "
                "config.json of your own"
            )
        if min(self.image_size) < 1:
            raise ValueError(f"image_size must be positive, got {self.image_size}")
        if self.layers_per_stage is not None and self.layers_per_stage < 1:
            raise ValueError(f"layers_per_stage must be positive, got {self.layers_per_stage}")


@dataclass(frozen=True, kw_only=True, slots=True)
class RecallConfig:
    """Measure what the demo policy with something to remember does with its memory and without.

    example: python -m export recall --episodes 50
    """

    checkpoint: Path = BLINK_CHECKPOINT
    """The policy."""

    task: str = "touch-what-blinked"
    """Key of `runtime.robots.metaworld.TASKS`."""

    episodes: int = 200
    """Per row."""

    seed0: int = 10_000
    """Of the first episode."""

    work: Path = Path("build/recall")
    """Folder for the bundle, the contact sheet, and the episodes that were run already."""

    results: Path = Path("docs/results")
    """Folder for the JSON."""

    film: Path = Path("docs/recall.gif")
    """An episode."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FullSizeConfig:
    """Take policies of the published size through the whole toolchain, and measure what it takes.

    Weights are random, 9 GB on disk; with engines, plans and twin up to 50 GB for a while.

    example: python -m export full-size --cases full/orin-w8a8
    """

    cases: tuple[str, ...] = (
        "full/orin-w8a8",
        "full/orin-w4a16",
        "full/orin-bf16",
        "xlerobot/orin-w8a8",
    )
    """Configuration/recipe."""

    work: Path = Path("build/full-size")
    """Folder for what is large; a case that was cut off goes on there, one that is done goes."""

    results: Path | None = None
    """Folder for a JSON file with all figures."""

    def __post_init__(self) -> None:
        for case in self.cases:
            config, _, recipe = case.partition("/")
            if config not in CONFIGS or recipe not in RECIPES:
                raise ValueError(
                    f"unknown case {case!r}: name CONFIG/RECIPE, of {sorted(CONFIGS)} and "
                    f"{sorted(RECIPES)}"
                )


def check_ticks(image: int, rounds: int) -> None:
    """
    Raises:
        ValueError: a picture of no size, or too few ticks for a median.
    """
    if image < 1 or rounds < 3:
        raise ValueError(f"image must be positive and rounds at least 3, got {image}, {rounds}")


@dataclass(frozen=True, kw_only=True, slots=True)
class ChangesConfig:
    """Time a tick of policies in which one input changed, beside all of them and public libraries.

    example: python -m export bench-changes config.json --results docs/results
    """

    configs: Positional[tuple[str, ...]]
    """Each a config.json, or a named configuration."""

    image: int = 224
    """Side of the camera image in pixels."""

    rounds: int = 9
    """Ticks per row."""

    work: Path = Path("build/bench-changes")
    """Folder for checkpoints and bundles, 3 GB for published widths and three layers."""

    results: Path | None = None
    """Folder for a JSON file with figures, machine and versions."""

    def __post_init__(self) -> None:
        check_ticks(self.image, self.rounds)


@dataclass(frozen=True, kw_only=True, slots=True)
class PicturesConfig:
    """Time a tick of policies that remember pictures, beside recomputing and public libraries.

    example: python -m export bench-pictures config.json --results docs/results
    """

    configs: Positional[tuple[str, ...]]
    """Each a config.json, or a named configuration: its usual tick; and its first one, if it keeps
    no pictures of events."""

    limits: tuple[str, ...] = ()
    """Configurations of which the limit of a cache is computed and nothing measured."""

    image: int = 224
    """Side of the camera image in pixels."""

    rounds: int = 9
    """Ticks per row."""

    work: Path = Path("build/bench-pictures")
    """Folder for checkpoints and bundles; two of the published width and three layers take 8 GB."""

    results: Path | None = None
    """Folder for a JSON file with figures, machine and versions."""

    def __post_init__(self) -> None:
        check_ticks(self.image, self.rounds)
