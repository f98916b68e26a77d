"""What `python -m export forecast` is asked for. Light to import: no torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from export.config import SIZES, Size
from models.families import CONFIGS
from quant.boards import BOARDS, Board, name_of_board
from quant.recipes import RECIPES, Recipe

PUBLISHED = SIZES["proxy"]
"""Image and tokens of every configuration that `SIZES` does not have."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ForecastConfig:
    """Tell what a policy will cost and give on a board: time, memory, rate, energy. Needs no
    weights and no board.

    example: python -m export forecast --config full --recipe orin-w8a8 --board orin-nano-8
    """

    config: str = "full"
    """A config.json, or a named configuration: demo, full, proxy, xlerobot."""

    checkpoint: Path | None = None
    """Folder with a config.json, forecast in place of `config`; its tokenizer and image settings
    count where they are there, its weights are not read."""

    recipe: str = "orin-w8a8"
    """Precision recipe; see `quant.recipes.RECIPES`."""

    board: str = "agx-orin-64gb"
    """See `quant.boards.BOARDS`."""

    image_size: tuple[int, int] | None = None
    """Width and height of the camera image in pixels; by default 256 256, and 112 112 for the
    demo."""

    tokens: int | None = None
    """Tokens per call of the language engine; by default 112, and 64 for the demo."""

    samples: int = 1
    """Chunks that are denoised at once, as `python -m export build` takes it."""

    layers_per_part: int | None = None
    """As `python -m export build` takes it; by default what suits the board."""

    out: Path = Path("build/forecast")
    """Folder for the page."""

    def __post_init__(self) -> None:
        name_of_board(self.board)
        if self.recipe not in RECIPES:
            raise ValueError(f"unknown recipe {self.recipe!r}; there are {sorted(RECIPES)}")
        why = refusal(self.made_recipe, self.board_figures)
        if why:
            raise ValueError(f"recipe {self.recipe}: {why}")
        is_named = self.checkpoint is not None or self.config in CONFIGS
        if not is_named and not Path(self.config).exists():
            raise ValueError(
                f"unknown configuration {self.config!r}; there are {sorted(CONFIGS)}, or name a "
                "config.json of your own"
            )
        if self.tokens is not None and self.tokens < 1:
            raise ValueError(f"tokens must be positive, got {self.tokens}")
        if self.samples < 1:
            raise ValueError(f"samples must be positive, got {self.samples}")
        if self.image_size is not None and min(self.image_size) < 1:
            raise ValueError(f"image_size must be positive, got {self.image_size}")
        if self.layers_per_part is not None and self.layers_per_part < 1:
            raise ValueError(f"layers_per_part must be positive, got {self.layers_per_part}")

    @property
    def board_name(self) -> str:
        return name_of_board(self.board)

    @property
    def board_figures(self) -> Board:
        return BOARDS[self.board_name]

    @property
    def made_recipe(self) -> Recipe:
        return RECIPES[self.recipe]()

    @property
    def policy(self) -> str | Path:
        """What is forecast: a name, a file or a folder."""
        return self.checkpoint or self.config

    @property
    def size(self) -> Size:
        """Of image and prompt where nothing else is said."""
        return PUBLISHED if self.checkpoint else SIZES.get(self.config, PUBLISHED)


def refusal(recipe: Recipe, board: Board) -> str:
    """Why a board cannot run a recipe; empty if it can."""
    if recipe.target == "cpu":
        return "it is made for a CPU, and a forecast is of a board's GPU: take orin-w8a8"
    if recipe.target == "thor" and board.target == "orin":
        return "it needs FP8, which an Orin (SM 8.7) has not: take orin-w8a8"
    return ""
