"""python -m models init: a checkpoint folder with seeded random weights, whole or not at all."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from models.checkpoint import INDEX, read_tokenizer, write_random_checkpoint
from models.config_file import configuration
from models.demo import CHECKPOINT
from models.families import CONFIGS
from models.networks.config import AnyVisionConfig
from models.policy_config import PolicyConfig
from models.sources import parameter_shapes
from models.verbs import Init
from runtime.errors import OutputError
from runtime.image import ImageConfig
from runtime.storage.folders import check_disk, exclusive, publish, temporary

DESCRIPTION = "seeded random weights"
FILES = (
    "config.json", "preprocessor_config.json", "dataset_statistics.json", "tokenizer.json", INDEX,
)  # fmt: skip


def init(arguments: Init) -> Path:
    """Do what `Init` says, with a line per file of weights.

    Raises:
        OutputError: the folder holds something else, or cannot be written.
        ValueError: a file of one's own is no configuration, or the tokenizer does not fit it.
    """
    config = dataclasses.replace(
        configuration(arguments.config),
        description=f"{DESCRIPTION} (seed {arguments.seed}): the arithmetic is real, "
        "the behaviour is not",
    )
    if not arguments.tokenizer.is_file():
        raise ValueError(f"{arguments.tokenizer}: no such file; name a tokenizer.json")
    read_tokenizer(arguments.tokenizer, config)
    num_bytes = sum(4 * math.prod(shape) for shape in parameter_shapes(config).values())
    out = arguments.out
    print(f"{out}: {arguments.config}, {num_bytes / 1e9:.2f} GB of random weights", flush=True)
    with exclusive(out, foreign), temporary(out) as folder:
        check_disk(out, num_bytes)
        try:
            write_random_checkpoint(
                folder,
                config,
                tokenizer=arguments.tokenizer,
                image=image_of(config),
                statistics=statistics_of(config),
                seed=arguments.seed,
                say=lambda line: print(f"  {line}", flush=True),
            )
        except (OSError, SafetensorError) as error:
            raise OutputError(f"{out}: cannot be written: {error}; free some space") from error
        publish(folder, out, foreign)
    return out


def foreign(folder: Path) -> str | None:
    """What keeps a folder from being one that `init` wrote."""
    try:
        described = json.loads((folder / "config.json").read_bytes())["description"]
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        described = ""
    if not str(described).startswith(DESCRIPTION):
        return "it holds no random weights of this command"
    for path in sorted(folder.iterdir()):
        is_shard = path.name.startswith("model-") and path.suffix == ".safetensors"
        if not path.is_file() or not (is_shard or path.name in FILES):
            return f"{path.name} is not of this command"
    return None


def image_of(config: PolicyConfig) -> ImageConfig:
    """Patches as the vision tower reads them, of images that are rarely resized."""
    vision = config.vision
    fixed: dict[str, Any] = {}
    if not isinstance(vision, AnyVisionConfig):
        fixed = {"size": (vision.image_size, vision.image_size), **vision.prepared}
    return ImageConfig(
        min_pixels=1,
        max_pixels=512 * 512,
        patch_size=vision.patch_size,
        temporal_patch_size=vision.temporal_patch_size,
        merge_size=vision.spatial_merge_size,
        image_mean=vision.image_mean,
        image_std=vision.image_std,
        **fixed,
    )


def statistics_of(config: PolicyConfig) -> dict[str, Any]:
    """The demo's real statistics, or made-up ones where no robot was ever recorded."""
    if config.normalization == CONFIGS["demo"]().normalization:
        return dict(json.loads((CHECKPOINT / "dataset_statistics.json").read_text()))

    def made_up(width: int) -> dict[str, list[float]]:
        low, high = [-1.0] * width, [1.0] * width
        return {"min": low, "max": high, "mean": [0.0] * width, "std": [0.5] * width} | {
            "q01": low,
            "q99": high,
        }

    return {"made_up": {"action": made_up(config.chunk[1]), "state": made_up(config.state_dim)}}
