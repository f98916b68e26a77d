"""What the verbs of `python -m models` are asked for. Light to import: no torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tyro.conf import Positional

from models.anchorvla4d.presets import CONFIGS
from models.demo import CHECKPOINT


@dataclass(frozen=True, kw_only=True)
class Init:
    """Write a checkpoint folder with seeded random weights, for arithmetic and benchmarks.

    Such a policy moves, but it knows nothing.

    example: python -m models init demo --out dir
    """

    config: Positional[str]
    """A config.json of your own, or a named configuration: demo, full, proxy, xlerobot."""
    out: Path
    """Folder to write; one that this command wrote is replaced, anything else refused."""
    seed: int = 0
    """Seed of the weights."""
    tokenizer: Path = CHECKPOINT / "tokenizer.json"
    """Vocabulary; must fit the configuration's embedding table."""

    def __post_init__(self) -> None:
        if not Path(self.config).exists():
            _check_name(self.config, ", or name a config.json of your own")


@dataclass(frozen=True, kw_only=True)
class Config:
    """Write a named configuration as a config.json to edit, or check one.

    example: python -m models config full --out config.json
    """

    name: Positional[str | None] = None
    """Named configuration to write: demo, full, proxy, xlerobot."""
    out: Path | None = None
    """File to write, which must not be there yet."""
    check: Path | None = None
    """A config.json, or a folder with one in it, to check instead."""

    def __post_init__(self) -> None:
        if (self.name is None) == (self.check is None):
            raise ValueError(
                "name a configuration to write (python -m models config full --out config.json), "
                "or a file to check (--check FILE)"
            )
        if self.name is not None:
            _check_name(self.name)
            if self.out is None:
                raise ValueError("say which file to write: --out config.json")
        elif self.out is not None:
            raise ValueError("--out belongs to writing a configuration, --check writes nothing")


def _check_name(name: str, otherwise: str = "") -> None:
    if name not in CONFIGS:
        known = ", ".join(sorted(CONFIGS))
        raise ValueError(f"unknown configuration {name!r}; there are {known}{otherwise}")
