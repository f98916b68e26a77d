"""python -m models init CONFIG --out DIR: write a checkpoint folder with seeded random weights.

For arithmetic, benchmarks and tests; such a policy moves, but it knows nothing.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from models.checkpoint import write_random_checkpoint
from models.config import CONFIGS, PolicyConfig, demo
from models.demo import CHECKPOINT
from runtime.image import ImageConfig


@dataclass(frozen=True, kw_only=True)
class Init:
    """Write a checkpoint folder with seeded random weights."""

    config: tyro.conf.Positional[str]
    """Named configuration."""
    out: Path
    """Folder to write."""
    seed: int = 0
    """Seed of the weights."""
    tokenizer: Path = CHECKPOINT / "tokenizer.json"
    """Vocabulary; must fit the configuration's embedding table."""

    def __post_init__(self) -> None:
        if self.config not in CONFIGS:
            raise ValueError(f"unknown configuration {self.config!r}; there are {sorted(CONFIGS)}")


def init(arguments: Init) -> Path:
    """Do what `Init` says."""
    config = dataclasses.replace(
        CONFIGS[arguments.config](),
        description=f"seeded random weights (seed {arguments.seed}): the arithmetic is real, "
        "the behaviour is not",
    )
    write_random_checkpoint(
        arguments.out,
        config,
        tokenizer=arguments.tokenizer,
        image=ImageConfig(min_pixels=1, max_pixels=512 * 512),
        statistics=statistics_of(config),
        seed=arguments.seed,
    )
    return arguments.out


def statistics_of(config: PolicyConfig) -> dict[str, Any]:
    """The demo's real statistics, or made-up ones where no robot was ever recorded."""
    if config.normalization == demo().normalization:
        return dict(json.loads((CHECKPOINT / "dataset_statistics.json").read_text()))

    def made_up(width: int) -> dict[str, list[float]]:
        low, high = [-1.0] * width, [1.0] * width
        return {"min": low, "max": high, "mean": [0.0] * width, "std": [0.5] * width} | {
            "q01": low,
            "q99": high,
        }

    head = config.head
    return {"made_up": {"action": made_up(head.action_dim), "state": made_up(head.state_dim)}}


if __name__ == "__main__":
    print(init(tyro.extras.subcommand_cli_from_dict({"init": Init}, prog="python -m models")))
