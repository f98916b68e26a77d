"""A folder of VLA-Adapter, Pro, written as its authors publish one.

In: a policy and what reads its parameters. Out: config.json, preprocessor_config.json, safetensors,
a file of torch each for the action head and the state's projector, dataset_statistics.json and
tokenizer.json; what the authors' code would not know of it in a file of our own. All that is stored
and never used is there too, drawn from the same seed. Names in the head's file are wrapped as by
several processes, those of the projector's are not: both are published.
"""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch

from models.init import statistics_of
from models.json_file import read_object
from models.layouts import hugging_face, writers
from models.layouts.prismatic import WRAPPER
from models.layouts.prismatic_networks import unused_tensors
from models.layouts.prismatic_robots import OWN, ROBOTS, Robot, normalization
from models.layouts.prismatic_settings import (
    ACCEPTED,
    ARCHITECTURE,
    CONFIG,
    MODEL_TYPE,
    PARTS,
    PREPROCESSOR,
    STATISTICS,
    TOKENIZER,
    TOWERS,
    image_settings,
)
from models.layouts.writers import (
    Say,
    check_asked,
    check_said,
    write_safetensors,
    write_sharded,
    write_torch,
)
from models.networks.config import BridgeConfig
from models.prismatic_chat import PromptConfig
from models.random_weights import random_tensor
from models.sources import Source, Weights
from models.verbs import Synthesize
from models.vlaadapter.config import VLAAdapterConfig

LAYOUT = "prismatic"
MARK = "_name_or_path"
"""Setting of transformers' that tells where a model is from."""
PART_FILES = {part: f"{part}--checkpoint.pt" for part in PARTS}
TIED = {"language_model.lm_head.weight": "language_model.model.embed_tokens.weight"}
_FILES = (CONFIG, PREPROCESSOR, STATISTICS, TOKENIZER, OWN, *PART_FILES.values())
WRITTEN = re.compile(
    rf"{'|'.join(map(re.escape, _FILES))}|model(-\d{{5}}-of-\d{{5}})?\.safetensors(\.index\.json)?"
)
"""Names of what is left in a folder."""


def check_writable(config: VLAAdapterConfig, arguments: Synthesize) -> None:
    """
    Raises:
        ValueError: it is to be written otherwise, or is what no such folder can say.
    """
    check_asked(arguments, config.model_type, LAYOUT)
    head, text = config.head, config.language
    plain = BridgeConfig(action_dim=1, action_horizon=1, state_dim=1)
    check_said(
        LAYOUT,
        [
            ("prompt", config.prompt, PromptConfig()),
            ("head.num_heads", head.num_heads, plain.num_heads),
            ("head.rope_theta", head.rope_theta, plain.rope_theta),
            ("language.mrope_section", text.mrope_section, (text.head_dim // 2, 0, 0)),
            *(
                (f"{of} of {name}", getattr(tower, of), getattr(known, of))
                for name, known, tower in _towers(config)
                for of in ("image_mean", "image_std")
            ),
        ],
    )


def write(
    folder: Path,
    weights: Weights,
    config: VLAAdapterConfig,
    arguments: Synthesize,
    mark: str,
    say: Say,
) -> None:
    """Everything that such a folder holds; `say` each file of weights.

    Args:
        mark: to tell whose it is, in config.json.
    """
    robot = robot_named(config)
    own = _own(config, robot)
    settings = {
        CONFIG: _settings(config, arguments.dtype, mark),
        PREPROCESSOR: _preprocessor(config),
        STATISTICS: _robots(config, robot),
        **({OWN: own} if own else {}),
    }
    for name, content in settings.items():
        (folder / name).write_text(json.dumps(content, indent=2) + "\n")
    shutil.copyfile(arguments.tokenizer, folder / TOKENIZER)
    tensors = {**weights, **_unused(weights, config, arguments)}
    for part, name in PART_FILES.items():
        begin = WRAPPER if part == PARTS[0] else ""
        inside = {n: tensors.pop(n) for n in [n for n in tensors if n.startswith(f"{part}.")]}
        write_torch(folder / name, {begin + n.removeprefix(f"{part}."): inside[n] for n in inside})
        say(f"{name}: {(folder / name).stat().st_size / 1e9:.2f} GB")
    if sum(source.num_bytes for source in tensors.values()) > writers.SHARD_BYTES:
        write_sharded(folder, tensors, mark, say)
    else:
        write_safetensors(folder / hugging_face.WEIGHTS, tensors)
        size = (folder / hugging_face.WEIGHTS).stat().st_size
        say(f"{hugging_face.WEIGHTS}: {size / 1e9:.2f} GB")


def mark_of(folder: Path) -> str | None:
    """Of a folder that `write` wrote."""
    try:
        raw = read_object(folder / CONFIG)
    except (OSError, ValueError):
        return None
    return str(raw.get(MARK)) if raw.get("model_type") == MODEL_TYPE else None


def robot_named(config: VLAAdapterConfig) -> Robot | None:
    """One whose constants say of a policy what is so, if there is one."""
    modes = config.normalization.action
    mask = [mode != "identity" for mode in modes]
    for robot in ROBOTS.values():
        if (robot.horizon, robot.views) == (config.head.action_horizon, config.views) and (
            normalization(robot, mask) == config.normalization
        ):
            return robot
    return None


def _towers(config: VLAAdapterConfig) -> list[tuple[str, Any, Any]]:
    """Name at timm's, what is known of it, and ours."""
    vision = config.vision
    names = zip(TOWERS.items(), (vision.featurizer, vision.fused_featurizer), strict=True)
    return [(name, known, tower) for (name, known), tower in names]


def _own(config: VLAAdapterConfig, robot: Robot | None) -> dict[str, Any]:
    """What has to be said beside."""
    own: dict[str, Any] = {}
    if robot is None:
        own["normalization"] = dataclasses.asdict(config.normalization)
        own |= {"views": config.views, "action_horizon": config.head.action_horizon}
    towers = _towers(config)
    if any(tower != known for _, known, tower in towers):
        own["tower_heads"] = [tower.num_heads for _, _, tower in towers]
    return own


def _settings(config: VLAAdapterConfig, dtype: str, mark: str) -> dict[str, Any]:
    """config.json, but for the statistics of what the base was trained with."""
    text, side = config.language, config.vision.image_size
    accepted = {name: values[0] for name, values in ACCEPTED.items()}
    return {
        MARK: mark,
        "architectures": [ARCHITECTURE],
        "hf_llm_id": "",
        "image_sizes": [side, side],
        "llm_max_length": 2048,
        "model_type": MODEL_TYPE,
        "n_action_bins": 256,
        **accepted,
        "text_config": {
            "attention_dropout": 0.0,
            "hidden_act": "silu",
            "hidden_size": text.hidden_size,
            "intermediate_size": text.intermediate_size,
            "model_type": "qwen2",
            "num_attention_heads": text.num_attention_heads,
            "num_hidden_layers": text.num_hidden_layers,
            "num_key_value_heads": text.num_key_value_heads,
            "rms_norm_eps": text.rms_norm_eps,
            "rope_theta": text.rope_theta,
            "tie_word_embeddings": True,
            "use_mrope": False,
            "use_sliding_window": False,
            "vocab_size": text.vocab_size,
        },
        "torch_dtype": dtype,
        "transformers_version": "4.40.1",
        "use_fused_vision_backbone": True,
    }


def _preprocessor(config: VLAAdapterConfig) -> dict[str, Any]:
    classes = {"AutoImageProcessor": "processing_prismatic.PrismaticImageProcessor"}
    return {
        "auto_map": classes,
        "processor_class": "PrismaticProcessor",
        **image_settings(config.vision),
    }


def _robots(config: VLAAdapterConfig, robot: Robot | None) -> dict[str, Any]:
    """Statistics, made up, with what the authors write beside the numbers."""
    mask = [mode != "identity" for mode in config.normalization.action]
    (name, entry), *_ = statistics_of(config).items()
    return {
        robot.data if robot else name: {
            "action": {**entry["action"], "mask": mask},
            "proprio": entry["state"],
            "num_transitions": 1000,
            "num_trajectories": 10,
        }
    }


def _unused(
    weights: Weights, config: VLAAdapterConfig, arguments: Synthesize
) -> Mapping[str, Source]:
    """What is stored and not read: drawn, or tied to what is."""
    made: dict[str, Source] = {}
    dtype = getattr(torch, arguments.dtype)
    for name, (shape, _) in unused_tensors(config.vision, config.language).items():
        if name in TIED:
            made[name] = weights[TIED[name]]
        else:
            read = partial(random_tensor, name, shape, arguments.seed, dtype=dtype)
            made[name] = Source(name, shape, dtype, (), f"drawn from seed {arguments.seed}", read)
    return made
