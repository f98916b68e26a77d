"""What one export is asked for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from models.demo import EPISODES
from quant.recipes import RECIPES

VERDICTS = Path("docs/results/gate-demo.json")
DEMO_OPTIONS: dict[str, Any] = {
    "image_size": (112, 112),
    "tokens": 64,
    "golden": EPISODES / "touch-red-1.npz",
}
"""How the demo policy is exported wherever it is."""


@dataclass(frozen=True, kw_only=True, slots=True)
class BuildConfig:
    """One export."""

    recipe: str
    """Precision recipe; see `quant.recipes.RECIPES`."""

    checkpoint: Path
    """Folder with config.json, weights, tokenizer and statistics."""

    out: Path
    """Bundle folder to write; an old one there is replaced when the new one is complete."""

    image_size: tuple[int, int] = (256, 256)
    """Width and height of the camera image in pixels."""

    tokens: int = 112
    """Tokens per call of the language engine; the prompt is padded to it, which costs time."""

    golden: Path | None = None
    """Recorded episode whose frames become the golden observation; made-up ones by default."""

    calibration: Path = EPISODES
    """Recorded episodes, or a LeRobot dataset, that show a recipe what flows; prompts included."""

    camera: str | None = None
    """Camera of the LeRobot dataset, where it has several."""

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
        if self.tokens < 1:
            raise ValueError(f"tokens must be positive, got {self.tokens}")
        if self.stride < 1:
            raise ValueError(f"stride must be positive, got {self.stride}")
