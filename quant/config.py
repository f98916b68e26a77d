"""What the verbs of `python -m quant` are asked for. Light to import: no torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from models.demo import EPISODES
from models.families import CONFIGS
from quant.boards import name_of_board


@dataclass(frozen=True, kw_only=True, slots=True)
class SensitivityConfig:
    """Measure what each group of layers costs in each format, and choose. Give one budget.

    example: python -m quant sensitivity --checkpoint dir --board agx-orin-64gb
    --budget-ms 54 --out study
    """

    checkpoint: Path
    """Folder of the policy; its errors are what is measured."""

    board: str
    """Whose arithmetic and bandwidth count; see `quant.boards.BOARDS`."""

    out: Path
    """Folder for recipe.json, pareto.svg, heat-map.svg and layers.svg."""

    budget_bytes: float | None = None
    """Weights that a warm tick may read, as a share of what float32 reads."""

    budget_ms: float | None = None
    """Time that a warm tick's linear layers may take, by the board's roofline."""

    episodes: Path = EPISODES
    """Recorded episodes or a LeRobot dataset, half to calibrate on, half to measure on."""

    camera: str | None = None
    """Key of the camera in a LeRobot dataset that has several; or of each view that the policy
    looks at, VIEW=KEY,VIEW=KEY."""

    stride: int = 8
    """Every so many frames of an episode one is taken."""

    limit: int | None = None
    """Observations to take at most."""

    shapes: str | None = None
    """Named configuration whose tick is counted; the checkpoint's own by default.
    What a small policy teaches about formats is worth something for a large one, its times are not.
    """

    image_size: tuple[int, int] = (256, 256)
    """Width and height of the camera image in pixels, for the tick that is counted."""

    tokens: int = 112
    """Tokens per call of the language engine, for the tick that is counted."""

    name: str = "orin-mixed"
    """Of the recipe."""

    def __post_init__(self) -> None:
        name_of_board(self.board)
        if self.shapes is not None and self.shapes not in CONFIGS:
            raise ValueError(f"unknown shapes {self.shapes!r}; there are {sorted(CONFIGS)}")
        if (self.budget_bytes is None) == (self.budget_ms is None):
            raise ValueError("give one budget: --budget-bytes 0.3 or --budget-ms 54")
        if self.tokens < 1 or min(self.image_size) < 1:
            raise ValueError(
                f"tokens and image_size must be positive, got {self.tokens}, {self.image_size}"
            )

    @property
    def unit(self) -> str:
        """Of the budget."""
        return "share" if self.budget_ms is None else "ms"

    @property
    def budget(self) -> float:
        budget = self.budget_bytes if self.budget_ms is None else self.budget_ms
        assert budget is not None
        return budget
