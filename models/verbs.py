"""What the verbs of `python -m models` are asked for. Light to import: no torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tyro.conf import Positional

from models.demo import CHECKPOINT
from models.families import CONFIGS, FAMILIES


@dataclass(frozen=True, kw_only=True)
class Init:
    """Write a checkpoint folder with seeded random weights, for arithmetic and benchmarks.

    Such a policy moves, but it knows nothing.

    example: python -m models init demo --out dir
    """

    config: Positional[str]
    """A config.json of your own, or a named configuration: demo, full, least, proxy,
    readouts, thin, three-anchors, xlerobot, or FAMILY-NAME of another family."""
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
    """Named configuration to write: demo, full, least, proxy, readouts, thin, three-anchors,
    xlerobot, or FAMILY-NAME of another family."""
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


@dataclass(frozen=True, kw_only=True)
class Import:
    """Turn a checkpoint of the authors' or of Hugging Face's layout into a folder of our own.

    Prints what went where. Every tensor finds its place, or nothing is written.

    example: python -m models import trained --out checkpoint
    """

    checkpoint: Positional[Path]
    """Folder with the weights, and beside them policy.json (or config.json of a policy),
    tokenizer.json, preprocessor_config.json and dataset_statistics.json."""
    out: Path
    """Folder to write; one that this command wrote is replaced, anything else refused."""


@dataclass(frozen=True, kw_only=True)
class Synthesize:
    """Write a checkpoint with random weights as others write theirs, of any size in little memory.

    Unlike those of init, its weights have outlier channels, as trained ones have.

    example: python -m models synthesize --config full --layout authors --out dir
    """

    config: str
    """A config.json of your own, or a named configuration: demo, full, least, proxy,
    readouts, thin, three-anchors, xlerobot, or FAMILY-NAME of another family."""
    out: Path
    """Folder to write; one that this command wrote is replaced, anything else refused."""
    layout: Literal["hf", "authors", "starvla", "prismatic", "lerobot", "showo", "own"] | None = (
        None
    )
    """Safetensors as transformers writes them, shards of Megatron, a run folder of starVLA, a
    folder as VLA-Adapter publishes one, one as LeRobot saves it or as trainings on Show-o leave
    it, or one of our own for a family that nobody published. May be left out where a family has
    one."""
    family: str | None = None
    """Whose configuration `config` names, where it is a name."""
    seed: int = 0
    """Seed of the weights."""
    dtype: Literal["bfloat16", "float16", "float32"] = "bfloat16"
    """In which they are stored."""
    outlier_channels: int = 8
    """Planted in front of every attention and every MLP of the language model."""
    names: Literal["published", "newer"] = "published"
    """Of layouts hf and starvla: before transformers 4.52, or since."""
    weights: Literal["pt", "safetensors"] = "pt"
    """Of layout starvla: the file that holds them."""
    settings: Literal["current", "older"] = "current"
    """Of layout starvla: how its config.yaml spells them."""
    shards: int = 1
    """Of layout authors: tensor-parallel ranks."""
    tokenizer: Path = CHECKPOINT / "tokenizer.json"
    """Vocabulary; must fit the configuration's embedding table."""

    def __post_init__(self) -> None:
        if self.family is not None:
            if self.family not in FAMILIES:
                raise ValueError(f"unknown family {self.family!r}; there are {sorted(FAMILIES)}")
            known = sorted(FAMILIES[self.family].presets)
            if self.config not in known:
                raise ValueError(f"{self.family} has no {self.config!r}; it has {', '.join(known)}")
        elif not Path(self.config).exists():
            _check_name(self.config, ", or name a config.json of your own")
        if self.shards < 1 or self.outlier_channels < 0:
            raise ValueError(
                "--shards must be at least 1 and --outlier-channels at least 0, got "
                f"{self.shards} and {self.outlier_channels}"
            )
        if self.shards > 1 and self.layout != "authors":
            raise ValueError("--shards belongs to --layout authors")
        if self.names != "published" and self.layout == "authors":
            raise ValueError("--names belongs to --layout hf, or starvla")
        is_run = self.layout not in ("hf", "authors")
        if (self.weights, self.settings) != ("pt", "current") and not is_run:
            raise ValueError("--weights and --settings belong to --layout starvla")


def _check_name(name: str, otherwise: str = "") -> None:
    if name not in CONFIGS:
        known = ", ".join(sorted(CONFIGS))
        raise ValueError(f"unknown configuration {name!r}; there are {known}{otherwise}")
