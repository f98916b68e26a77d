"""A folder of SmolVLA, written as LeRobot saves one.

In: a policy and what reads its parameters. Out: config.json, model.safetensors, both processors
with the numbers of their normalizers, and tokenizer.json. What is stored and never read is there
too, drawn from the same seed. What LeRobot has no setting for stands in a file of our own: units,
and the sizes of a language model that nobody published.

Source: LeRobot 0.6.1, policies/smolvla/{configuration,processor}_smolvla.py and
processor/pipeline.py.
"""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from models.init import statistics_of
from models.json_file import read_object
from models.layouts.hugging_face import WEIGHTS
from models.layouts.lerobot import (
    KNOWN,
    NUMBERS,
    OWN,
    STATISTICS,
    mlp_width,
    their_name,
    unused_tensors,
)
from models.layouts.lerobot_settings import (
    ACCEPTED,
    ACTION,
    CONFIG,
    DEFAULTS,
    EMPTY,
    IMAGES,
    MODES,
    POSTPROCESSOR,
    PREPROCESSOR,
    STATE,
    TOKENIZER,
    TYPE,
)
from models.layouts.writers import Say, check_asked, check_said, write_safetensors
from models.networks.config import LlamaConfig
from models.random_weights import random_tensor
from models.smolvla.config import PromptConfig, SmolVLAConfig
from models.sources import Source, Weights
from models.verbs import Synthesize

LAYOUT = "lerobot"
MARK = "tags"
"""Setting of LeRobot's for words about a policy."""
UNPUBLISHED = "anchorvla/synthesized"
"""What a language model is called that is none of `KNOWN`."""
STEPS = {
    PREPROCESSOR: (
        "rename_observations_processor", "to_batch_processor", "smolvla_new_line_processor",
        "tokenizer_processor", "device_processor", "normalizer_processor",
    ),
    POSTPROCESSOR: ("unnormalizer_processor", "device_processor"),
}  # fmt: skip
"""LeRobot's processors, in their order."""
EPSILON = 1e-8
"""LeRobot's, beside a deviation."""
_FILES = (CONFIG, WEIGHTS, PREPROCESSOR, POSTPROCESSOR, TOKENIZER, OWN)
WRITTEN = re.compile(
    rf"{'|'.join(map(re.escape, _FILES))}|policy_(pre|post)processor_step_\d_\w+\.safetensors"
)
"""Names of what is left in a folder."""


def check_writable(config: SmolVLAConfig, arguments: Synthesize) -> None:
    """
    Raises:
        ValueError: it is to be written otherwise, or is what no such folder can say.
    """
    check_asked(arguments, config.model_type, LAYOUT)
    head, n = config.head, config.normalization
    check_said(
        LAYOUT,
        [
            ("prompt.text", config.prompt.text, PromptConfig().text),
            ("head.intermediate_size", head.intermediate_size, mlp_width(head.hidden_size)),
            ("normalization.state", n.state, n.state[:1] * len(n.state)),
            ("normalization.action", n.action, n.action[:1] * len(n.action)),
        ],
    )
    if unknown := sorted({*n.state, *n.action} - set(MODES.values())):
        raise ValueError(f"LeRobot knows {sorted(MODES.values())}, and no normalization {unknown}")
    if unseen := [v for v in config.views if v.startswith(EMPTY) or "." in v]:
        raise ValueError(f"views {unseen} would be read as others: LeRobot hides {EMPTY}N")


def write(
    folder: Path,
    weights: Weights,
    config: SmolVLAConfig,
    arguments: Synthesize,
    mark: str,
    say: Say,
) -> None:
    """Everything that such a folder holds; `say` the file of weights.

    Args:
        mark: to tell whose it is, in config.json.
    """
    settings = {CONFIG: _settings(config, mark), OWN: _own(config)}
    for file, steps in STEPS.items():
        settings[file] = {
            "name": file.removesuffix(".json"),
            "steps": [_step(config, folder, file, number) for number in range(len(steps))],
        }
    for name, content in settings.items():
        (folder / name).write_text(json.dumps(content, indent=4) + "\n")
    shutil.copyfile(arguments.tokenizer, folder / TOKENIZER)
    tensors = {**weights, **_unused(config, arguments)}
    write_safetensors(
        folder / WEIGHTS, {their_name(name): source for name, source in tensors.items()}
    )
    say(f"{WEIGHTS}: {(folder / WEIGHTS).stat().st_size / 1e9:.2f} GB")


def mark_of(folder: Path) -> str | None:
    """Of a folder that `write` wrote."""
    try:
        raw = read_object(folder / CONFIG)
    except (OSError, ValueError):
        return None
    tags = raw.get(MARK)
    return str(tags[0]) if raw.get("type") == TYPE and isinstance(tags, list) and tags else None


def _settings(config: SmolVLAConfig, mark: str) -> dict[str, Any]:
    """config.json."""
    head, language = config.head, config.language
    values = {
        "vlm_model_name": _known(config) or UNPUBLISHED,
        "chunk_size": head.action_horizon,
        "max_state_dim": head.max_state_dim,
        "max_action_dim": head.max_action_dim,
        "resize_imgs_with_padding": [config.vision.image_size] * 2,
        "tokenizer_max_length": config.prompt.max_length,
        "num_steps": head.num_inference_timesteps,
        "num_vlm_layers": language.num_hidden_layers,
        "num_expert_layers": language.num_hidden_layers,
        "self_attn_every_n_layers": head.self_attn_every_n_layers,
        "expert_width_multiplier": _multiplier(head.hidden_size, language.hidden_size),
        "min_period": head.min_period,
        "max_period": head.max_period,
    }
    assert values.keys() == DEFAULTS.keys()
    return {
        "type": TYPE,
        MARK: [mark],
        **_features(config),
        "n_action_steps": head.action_horizon,
        "pad_language_to": "max_length",
        **{name: accepted[0] for name, accepted in ACCEPTED.items()},
        **values,
    }


def _features(config: SmolVLAConfig) -> dict[str, Any]:
    """What is seen, what is answered, and how each is normalized."""
    modes = {ours: theirs for theirs, ours in MODES.items()}
    n, side = config.normalization, config.vision.image_size
    return {
        "input_features": {
            STATE: {"type": "STATE", "shape": [config.head.state_dim]},
            **{
                f"{IMAGES}{view}": {"type": "VISUAL", "shape": [3, side, side]}
                for view in config.views
            },
        },
        "output_features": {ACTION: {"type": "ACTION", "shape": [config.head.action_dim]}},
        "normalization_mapping": {
            "VISUAL": "IDENTITY",
            "STATE": modes[n.state[0]],
            "ACTION": modes[n.action[0]],
        },
    }


def _own(config: SmolVLAConfig) -> dict[str, Any]:
    """What has to be said beside."""
    n = config.normalization
    own: dict[str, Any] = {"action_units": n.action_units, "state_units": n.state_units}
    if _known(config) is None:
        own["vision"] = dataclasses.asdict(config.vision)
        own["language"] = dataclasses.asdict(config.language)
    return own


def _known(config: SmolVLAConfig) -> str | None:
    """The published language model that it is built on: layers and vocabulary are its own."""

    def like(language: LlamaConfig) -> LlamaConfig:
        c = config.language
        return dataclasses.replace(
            language, num_hidden_layers=c.num_hidden_layers, vocab_size=c.vocab_size
        )

    for name, make in KNOWN.items():
        vision, language = make()
        if (vision, like(language)) == (config.vision, config.language):
            return name
    return None


def _multiplier(width: int, of: int) -> float:
    """A number that times `of`, without its fraction, is `width`."""
    return next(m for m in (width / of, (width + 0.5) / of) if int(of * m) == width)


def _step(config: SmolVLAConfig, folder: Path, file: str, number: int) -> dict[str, Any]:
    """Of a processor, and the numbers that it reads."""
    name = STEPS[file][number]
    features = _features(config)
    made: dict[str, Any] = {"registry_name": name, "config": {}}
    if name == "rename_observations_processor":
        made["config"] = {"rename_map": {}}
    elif name == "device_processor":
        made["config"] = {"device": "cpu", "float_dtype": None}
    elif name == "tokenizer_processor":
        made["config"] = {
            "max_length": config.prompt.max_length,
            "task_key": "task",
            "padding_side": "right",
            "padding": "max_length",
            "truncation": True,
            "tokenizer_name": _known(config) or UNPUBLISHED,
        }
    elif name.endswith("normalizer_processor"):
        seen = {} if file == POSTPROCESSOR else features["input_features"]
        made["config"] = {
            "eps": EPSILON,
            "features": {**seen, **features["output_features"]},
            "norm_map": features["normalization_mapping"],
        }
        made["state_file"] = f"{file.removesuffix('.json')}_step_{number}_{name}.safetensors"
        save_file(_numbers(config), folder / made["state_file"])
        (folder / made["state_file"]).chmod(0o644)  # the library writes it for its owner only
    return made


def _numbers(config: SmolVLAConfig) -> dict[str, torch.Tensor]:
    """Statistics, made up, as both normalizers keep them."""
    (robot,) = statistics_of(config).values()
    return {
        f"{key}.{name}": torch.tensor(robot[kind][name])
        for kind, key, _, _ in STATISTICS
        for name in NUMBERS
    }


def _unused(config: SmolVLAConfig, arguments: Synthesize) -> dict[str, Source]:
    """What is stored and not read."""
    made: dict[str, Source] = {}
    dtype = getattr(torch, arguments.dtype)
    for name, (shape, _) in unused_tensors(config).items():
        read = partial(random_tensor, name, shape, arguments.seed, dtype=dtype)
        made[name] = Source(name, shape, dtype, (), f"drawn from seed {arguments.seed}", read)
    return made
