"""What each verb of `python -m export` is asked for. Light to import: no torch."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from tyro.conf import Positional

from models.demo import BLINK_CHECKPOINT, CHECKPOINT, EPISODES, HELD_OUT
from models.families import CONFIGS
from quant.boards import name_of_board
from quant.recipes import RECIPES, Recipe, Softmax

VERDICTS = Path("docs/results/gate-demo.json")
PLANTED = "planted-demo.json"
RESULT = "success-demo.json"
W8A8 = "w8a8.json"
W8A8_POLICIES = ("demo", "full width, random", "full width, outliers planted")
DEMO_OPTIONS: dict[str, Any] = {
    "image_size": (112, 112),
    "tokens": 64,
    "calibration": EPISODES,
    "held_out": HELD_OUT,
}
"""How the demo policy is exported wherever it is."""


@dataclass(frozen=True, kw_only=True, slots=True)
class BuildConfig:
    """One export.

    example: python -m export build orin-w8a8 --checkpoint dir --out bundle
    --image-size 640 480 --calibration recorded
    """

    recipe: Positional[str]
    """Precision recipe; see `quant.recipes.RECIPES`."""

    checkpoint: Path
    """Folder with config.json, weights, tokenizer and statistics."""

    out: Path
    """Bundle folder to write; an old one there is replaced when the new one is complete."""

    image_size: tuple[int, int] = (256, 256)
    """Width and height of the camera image in pixels."""

    resize_on: Literal["host", "engine"] = "host"
    """Where images become patches: on the CPU, or in an engine, which a GPU runs sooner than most
    CPUs (see `docs/on_the_robot.md`). The patches are the same."""

    samples: int = 1
    """Chunks per tick, each from a noise of its own, denoised at once. The one nearest to the
    others is carried out, and how far it is from them comes along as the output `spread`."""

    tokens: int | None = None
    """Tokens per call of the language engine; the prompt is padded to it, which costs time. By
    default what the prompt and the longest instruction of the episodes take, with a margin."""

    board: str | None = None
    """Board that the bundle is for, see `quant.boards.BOARDS`: an engine then holds no more layers
    than were seen to build there. No network is cut by default."""

    layers_per_part: int | None = None
    """Layers of the language model in one engine, instead of what suits the board. Vision and
    spatial encoder are cut so that none of their parts weighs more. Nothing is cut if it has no
    more layers. No part has 2 GiB of weights in float32, whatever is asked for."""

    softmax: Softmax | None = None
    """Of attention, instead of the recipe's: `base` takes the casts around it away, for a compiler
    that fuses attention only without them. The gates judge what that costs."""

    calibration: Path | None = None
    """Recorded episodes of the robot (a folder of .npz, or a LeRobot dataset), prompts included: a
    recipe learns its scales from them."""

    held_out: Path | None = None
    """Other episodes, to be judged by; every fifth of the calibration's by default."""

    golden: Path | None = None
    """Episodes of which the first one's middle frame becomes the golden observation; by default it
    is one of those held out."""

    camera: str | None = None
    """Camera of the LeRobot dataset, where it has several; or of each view that the policy looks
    at, VIEW=KEY,VIEW=KEY."""

    stride: int = 6
    """Every so many frames of an episode one is calibrated on."""

    max_observations: int | None = None
    """Calibrate on no more than these; on all of them by default."""

    verdicts: Path = VERDICTS
    """What `make gate` found out about bundles in closed loop, by their hash."""

    sensitivity: Path | None = None
    """JSON of the sensitivity search, to draw in the report."""

    yardsticks: bool = True
    """Set the formats beside bitsandbytes' NF4 and LLM.int8 in the report (10 s)."""

    compile_check: bool = True
    """Compile every engine with TensorRT for RTX, where that is installed."""

    force: bool = False
    """Write a bundle whose gates failed too; it is marked, and the runtime refuses it."""

    def __post_init__(self) -> None:
        if self.recipe not in RECIPES:
            raise ValueError(f"unknown recipe {self.recipe!r}; there are {sorted(RECIPES)}")
        if min(self.image_size) < 1:
            raise ValueError(f"image_size must be positive, got {self.image_size}")
        if self.tokens is not None and self.tokens < 1:
            raise ValueError(f"tokens must be positive, got {self.tokens}")
        if self.samples < 1:
            raise ValueError(f"samples must be positive, got {self.samples}")
        if self.stride < 1:
            raise ValueError(f"stride must be positive, got {self.stride}")
        _check_parts(self.board, self.layers_per_part)
        self.chosen_recipe()

    def chosen_recipe(self) -> Recipe:
        """With what was asked for beside its name.

        Raises:
            ValueError: its base is float32, which softmax has anyway.
        """
        recipe = RECIPES[self.recipe]()
        if self.softmax is None:
            return recipe
        if recipe.base == "float32":
            raise ValueError(
                f"recipe {self.recipe} computes in float32, and softmax with it: --softmax is for "
                "recipes of another base"
            )
        return dataclasses.replace(recipe, softmax=self.softmax)


def _check_parts(board: str | None, layers_per_part: int | None) -> None:
    if board is not None:
        name_of_board(board)
    if layers_per_part is not None and layers_per_part < 1:
        raise ValueError(f"layers_per_part must be positive, got {layers_per_part}")


@dataclass(frozen=True, kw_only=True, slots=True)
class PartsConfig:
    """Print into which engines a policy is cut for a board, and their bytes; needs no weights.

    example: python -m export parts --config full --board orin-nano-8gb --recipe orin-w8a8
    """

    board: str
    """See `quant.boards.BOARDS`."""

    config: str = "full"
    """A config.json, or a named configuration: demo, full, proxy, xlerobot."""

    recipe: str | None = None
    """Precision recipe; by default all that are made for the board's kind of GPU."""

    layers_per_part: int | None = None
    """As `python -m export build` takes it."""

    def __post_init__(self) -> None:
        _check_parts(self.board, self.layers_per_part)
        if self.recipe is not None and self.recipe not in RECIPES:
            raise ValueError(f"unknown recipe {self.recipe!r}; there are {sorted(RECIPES)}")
        if self.config not in CONFIGS and not Path(self.config).exists():
            raise ValueError(
                f"unknown configuration {self.config!r}; there are {sorted(CONFIGS)}, or name a "
                "config.json of your own"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class TwinConfig:
    """Make the float32 twin of a bundle, which runs on a CPU and rounds as the bundle does.

    example: python -m export twin --bundle bundle --out bundle-twin
    """

    bundle: Path
    """Of any recipe."""

    out: Path
    """Folder to write."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DemoConfig:
    """Do the whole job on the shipped demo policy: export, run, report.

    example: python -m export demo --out build/demo
    """

    out: Path = Path("build/demo")
    """Folder for bundle and report."""

    rate_hz: float = 20.0
    """Actions per second."""

    live: bool = True
    """Close the loop on the simulator where one can render here; recorded episodes run anyway."""

    episodes: int = 2
    """Simulated ones per task."""


@dataclass(frozen=True, slots=True)
class Size:
    image: int
    tokens: int
    rounds_factor: int


SIZES = {"demo": Size(112, 64, 10), "proxy": Size(256, 112, 1)}


@dataclass(frozen=True, kw_only=True, slots=True)
class BenchConfig:
    """Time the runtime beside what one would compose from public libraries.

    example: python -m export bench --results docs/results
    """

    sizes: tuple[str, ...] = ("demo", "proxy")
    """`demo`, and `proxy`: published widths and image size, a sixth of the layers."""

    rounds: int = 9
    """Ticks per row; the demo, being quick, takes ten times as many."""

    work: Path = Path("build/bench")
    """Folder for checkpoints and bundles; the proxy takes 6 GB."""

    results: Path | None = None
    """Folder for a JSON file with figures, machine and versions."""

    def __post_init__(self) -> None:
        if unknown := sorted(set(self.sizes) - SIZES.keys()):
            raise ValueError(f"unknown sizes {unknown}; there are {sorted(SIZES)}")
        if self.rounds < 3:
            raise ValueError(f"rounds must be at least 3, got {self.rounds}")


def _exportable() -> tuple[str, ...]:
    recipes = {name: make() for name, make in RECIPES.items()}
    return tuple(n for n, r in recipes.items() if r.is_quantized and r.target != "thor")


@dataclass(frozen=True, kw_only=True, slots=True)
class GateConfig:
    """Run recipes in closed loop, paired with float32; exit code 1 if one costs too much.

    example: python -m export gate --recipes orin-w8a8
    """

    recipes: tuple[str, ...] = field(default_factory=_exportable)
    """Of the demo policy; by default all that change anything and can be exported here."""

    samples: int = 8
    """Of one more bundle, in float32, which carries out the middle one of so many actions; 1 for
    none."""

    episodes: int = 150
    """Per task; there are four."""

    seed0: int = 10_000
    """Of the first episode of every task."""

    work: Path = Path("build/gate")
    """Folder for bundles, twins, and the episodes that were run already."""

    verdicts: Path = VERDICTS
    """JSON that takes the verdicts; those on other bundles are left in it."""

    def __post_init__(self) -> None:
        if unknown := sorted(set(self.recipes) - RECIPES.keys()):
            raise ValueError(f"unknown recipes {unknown}; there are {sorted(RECIPES)}")
        if self.samples < 1:
            raise ValueError(f"samples must be positive, got {self.samples}")
        if self.episodes < 1:
            raise ValueError(f"episodes must be positive, got {self.episodes}")


@dataclass(frozen=True, kw_only=True, slots=True)
class PlantedConfig:
    """Plant faults in finished bundles and run them in closed loop; exit code 1 if one that the
    motion gate has to catch passes it.

    example: python -m export planted
    """

    episodes: int = GateConfig().episodes
    """Per task; there are four."""

    seed0: int = GateConfig().seed0
    """Of the first episode of every task."""

    work: Path = GateConfig().work
    """Folder for bundles, and the episodes that were run already, those of the gate among them."""

    results: Path = Path("docs/results")
    """Folder for the JSON."""

    def __post_init__(self) -> None:
        if self.episodes < 1:
            raise ValueError(f"episodes must be positive, got {self.episodes}")


@dataclass(frozen=True, kw_only=True, slots=True)
class W8A8Config:
    """Compare ways to int8 inputs, stage by stage; renders nothing: `python -m export results`.

    example: python -m export w8a8 --policies demo
    """

    policies: tuple[str, ...] = W8A8_POLICIES
    """The shipped one, and random weights of the published widths, a layer or two of each."""

    observations: int = 6
    """Of the demo policy: so many to learn scales from, and so many held-out ones to judge by."""

    work: Path = Path("build/w8a8")
    """Folder for the random checkpoint (1 GB)."""

    results: Path = Path("docs/results")
    """Folder for the JSON."""

    def __post_init__(self) -> None:
        if unknown := sorted(set(self.policies) - set(W8A8_POLICIES)):
            raise ValueError(f"unknown policies {unknown}; there are {W8A8_POLICIES}")
        if self.observations < 1:
            raise ValueError(f"observations must be positive, got {self.observations}")


@dataclass(frozen=True, kw_only=True, slots=True)
class SuccessTableConfig:
    """Measure what the demo policy does in closed loop.

    example: python -m export success --seeds build/demo-seed1
    --without-anchor build/demo-without-anchor
    """

    checkpoint: Path = CHECKPOINT
    """The policy."""

    without_anchor: Path | None = None
    """Checkpoint that the same recipe trained without an anchor; no such row if left out."""

    seeds: tuple[Path, ...] = ()
    """Checkpoints of the same recipe with other training seeds."""

    episodes: int = 100
    """Per task and row."""

    seed0: int = 10_000
    """Of the first episode of every task."""

    work: Path = Path("build/success")
    """Folder for bundles, contact sheet, and the episodes that were run already."""

    results: Path = Path("docs/results")
    """Folder for the JSON."""

    film: Path = Path("docs/film.gif")
    """An episode of each task."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ResultsConfig:
    """Render the tables of README, docs and model card from the files in docs/results.

    example: python -m export results
    """

    results: Path = Path("docs/results")
    """Folder of JSON files, as `python -m export bench --results` writes them."""

    numbers: Path = Path("docs/numbers.md")
    """File whose marked section shows all of them."""

    readme: Path = Path("README.md")
    """File whose marked section shows the benchmarks."""

    precision: Path = Path("docs/precision.md")
    """File whose marked section compares ways to int8 inputs."""

    card: Path = CHECKPOINT / "README.md"
    """File whose marked section shows the success rates."""

    recall_card: Path = BLINK_CHECKPOINT / "README.md"
    """File whose marked section shows what a memory is worth."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CrosscheckConfig:
    """Compile every engine with torch-tensorrt too, and compare time and error with the plans.

    Needs a GPU and torch-tensorrt; nobody has run it with them yet.

    example: python -m export crosscheck --checkpoint dir
    """

    checkpoint: Path
    """Folder with config.json, weights, tokenizer and statistics."""

    bundle: Path | None = None
    """Float32 bundle of the same checkpoint and shapes, with plans built here; none by default."""

    image_size: tuple[int, int] = (256, 256)
    """Width and height of the camera image in pixels."""

    tokens: int = 112
    """Tokens per call of the language engine."""

    runs: int = 50
    """Of each engine, each way; interleaved."""

    engines: tuple[str, ...] = ()
    """Only these; all by default."""

    def __post_init__(self) -> None:
        if self.runs < 1:
            raise ValueError(f"runs must be positive, got {self.runs}")
