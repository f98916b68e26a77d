"""A run folder of starVLA, written as training leaves one.

In: a policy, what reads its parameters, and the settings of its framework. Out: config.yaml,
dataset_statistics.json and weights in one file; and of the model that the run began with its
tokenizer, image settings and, where its sizes are not published ones, config.json. The trade-off:
settings that only a training needs are left out.
"""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import yaml

from models.init import image_of, statistics_of
from models.layouts import hugging_face
from models.layouts.qwen_config import Spelling, qwen_config
from models.layouts.starvla import STATISTICS, UNUSED
from models.layouts.starvla_config import CONFIG, INSTRUCTION, OLDER, TRAINED_SIZE
from models.layouts.starvla_mixes import MIXES, OWN, modes, robot_of, units
from models.layouts.starvla_vlm import (
    KNOWN,
    PREPROCESSOR,
    QWEN2_5,
    QWEN3,
    SETTINGS,
    TOKENIZER,
)
from models.layouts.writers import Say, write_safetensors, write_torch
from models.policy_config import QwenPolicyConfig
from models.processor import image_fields
from models.sources import Source, Weights
from models.verbs import Synthesize

STEP = 1000
BASES = {QWEN2_5: "Qwen2.5-VL-synthesized", QWEN3: "Qwen3-VL-synthesized"}
"""What a model is called that is none of the published ones, by its type."""
POOL = "./playground/Pretrained_models"
"""Where starVLA's own settings have the models that a run begins with."""
FILES = {"pt": f"steps_{STEP}_pytorch_model.pt", "safetensors": f"steps_{STEP}_model.safetensors"}
_ANY = {
    "file": "|".join(map(re.escape, FILES.values())),
    "base": "|".join(map(re.escape, BASES.values())),
}
WRITTEN = re.compile(
    rf"config\.(yaml|json)|{STATISTICS}|{TOKENIZER}|{PREPROCESSOR}|{OWN}|checkpoints"
    rf"|checkpoints/({_ANY['file']})|({_ANY['base']})(/{SETTINGS})?"
)
"""Names of what is left in a folder."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Described:
    """What a framework's settings say of a policy."""

    framework: str
    action_model: Mapping[str, Any]
    views: tuple[str, ...]
    takes_state: bool
    text: str
    framework_settings: Mapping[str, Any] = field(default_factory=dict)
    """More of `framework`."""
    data_settings: Mapping[str, Any] = field(default_factory=dict)
    """More of `datasets.vla_data`."""
    flags: Mapping[str, bool] = field(default_factory=dict)
    """Truth values beside the weights."""


def write_run(
    folder: Path,
    weights: Weights,
    config: QwenPolicyConfig,
    described: Described,
    arguments: Synthesize,
    mark: str,
    say: Say,
) -> None:
    """Everything that a run folder holds; `say` the file of weights.

    Args:
        mark: to tell whose it is, in the first line of config.yaml.
    """
    mix = mix_of(config, described)
    base = next((name for name, networks in KNOWN.items() if _is_of(config, networks)), None)
    made_up = BASES[hugging_face.spelled(config.vision).model_type]
    settings = _settings(config, described, mix, f"{POOL}/{base}" if base else made_up)
    if arguments.settings == "older":
        settings = _older(settings)
        (folder / OLDER).write_text(json.dumps(settings, indent=2) + "\n")
    words = yaml.safe_dump(settings, sort_keys=False, default_flow_style=None, width=1000)
    (folder / CONFIG).write_text(f"# {mark}\n{words}")
    if mix is None:
        n = dataclasses.asdict(config.normalization)
        own = {"normalization": n, "views": described.views, "takes_state": described.takes_state}
        (folder / OWN).write_text(json.dumps(own, indent=2) + "\n")
    (folder / STATISTICS).write_text(json.dumps(_statistics(config), indent=2) + "\n")
    (folder / PREPROCESSOR).write_text(json.dumps(image_fields(image_of(config)), indent=2) + "\n")
    shutil.copyfile(arguments.tokenizer, folder / TOKENIZER)
    if base is None:
        (folder / made_up).mkdir()
        made = qwen_config(config, arguments.names, arguments.dtype)
        (folder / made_up / SETTINGS).write_text(json.dumps(made, indent=2) + "\n")
    (folder / "checkpoints").mkdir()
    file = folder / "checkpoints" / FILES[arguments.weights]
    write = write_torch if arguments.weights == "pt" else write_safetensors
    flags = {name: _flag(name, value) for name, value in described.flags.items()}
    write(file, _tensors(weights, arguments.names) | flags)
    say(f"{file.name}: {file.stat().st_size / 1e9:.2f} GB")


def open_own(path: Path, config: QwenPolicyConfig) -> Weights:
    """As `hugging_face.open_own`, of a policy that stands on a Qwen-VL."""
    return hugging_face.open_own(path, config, UNUSED)


def check_starvla(config: QwenPolicyConfig, arguments: Synthesize) -> None:
    """
    Raises:
        ValueError: it is to be written otherwise than as a run folder.
    """
    if arguments.layout not in (None, "starvla"):
        raise ValueError(f"a {config.model_type} is written as --layout starvla only")


def mark_of(folder: Path) -> str | None:
    """Of a folder that `write_run` wrote."""
    try:
        first = (folder / CONFIG).read_text("utf-8").split("\n", 1)[0]
    except (OSError, UnicodeDecodeError):
        return None
    return first.removeprefix("# ") if first.startswith("# ") else None


def mix_of(config: QwenPolicyConfig, described: Described) -> str | None:
    """A data mix that says of a policy what is so, if there is one."""
    n = config.normalization
    for mix in MIXES:
        robot = robot_of(mix)
        state = robot.state if described.takes_state else ()
        if (
            not isinstance(state, str)
            and (robot.views, modes(robot.action), units(robot.action))
            == (described.views, n.action, n.action_units)
            and (modes(state), units(state)) == (n.state, n.state_units)
        ):
            return mix
    return None


def _is_of(config: QwenPolicyConfig, networks: tuple[Any, Any]) -> bool:
    vision, language = networks
    vocabulary = config.language.vocab_size
    return config.vision == vision and config.language == dataclasses.replace(
        language, vocab_size=vocabulary
    )


def _settings(
    config: QwenPolicyConfig, described: Described, mix: str | None, base: str
) -> dict[str, Any]:
    data: dict[str, Any] = {
        "dataset_py": "lerobot_datasets",
        "data_mix": mix or "synthesized",
        "include_state": described.takes_state,
        "obs_image_size": list(TRAINED_SIZE),
        **described.data_settings,
    }
    if described.text != INSTRUCTION:
        data["CoT_prompt"] = described.text
    return {
        "run_id": "synthesized",
        "version_id": "0.21",
        "framework": {
            "name": described.framework,
            "qwenvl": {"base_vlm": base, "vl_hidden_dim": config.language.hidden_size},
            "action_model": dict(described.action_model),
            **described.framework_settings,
        },
        "datasets": {"vla_data": data},
        "trainer": {"max_train_steps": STEP},
    }


def _older(settings: Mapping[str, Any]) -> dict[str, Any]:
    """As before version 0.21: what is predicted beside the present action, and other names."""
    framework, data = settings["framework"], dict(settings["datasets"]["vla_data"])
    action_model = dict(framework["action_model"])
    action_model["future_action_window_size"] = action_model.pop("action_horizon") - 1
    action_model["past_action_window_size"] = 0
    if "diffusion_model_cfg" in action_model:
        action_model["diffusion_model_cfg"] = {
            name: value
            for name, value in action_model["diffusion_model_cfg"].items()
            if name != "output_dim"
        }
    data["default_image_resolution"] = [3, *reversed(data.pop("obs_image_size"))]
    return {
        "run_id": settings["run_id"],
        "framework": framework | {"action_model": action_model},
        "datasets": {"vla_data": data},
        "trainer": settings["trainer"],
    }


def _statistics(config: QwenPolicyConfig) -> dict[str, Any]:
    """Made up, with what starVLA writes beside the numbers."""
    mask = [mode != "binary" for mode in config.normalization.action]
    return {
        robot: {
            "action": {**entry["action"], "mask": mask},
            **({"state": entry["state"]} if config.state_dim else {}),
            "num_transitions": 1000,
            "num_trajectories": 10,
        }
        for robot, entry in statistics_of(config).items()
    }


def _tensors(weights: Weights, spelling: Spelling) -> dict[str, Source]:
    """As starVLA names them: the head in float32, and an `lm_head` tied to the embeddings."""
    made: dict[str, Source] = {}
    for name, source in weights.items():
        part, _, inside = name.partition(".")
        if part != "vlm":
            stored = f"action_model.{inside}" if part == "action_head" else name
            made[stored] = _in_float32(source)
            continue
        if spelling == "newer":
            inside = (
                "model.language_model." + inside.removeprefix("model.")
                if inside.startswith("model.")
                else f"model.{inside}"
            )
        made[f"qwen_vl_interface.model.{inside}"] = source
    made["qwen_vl_interface.model.lm_head.weight"] = weights["vlm.model.embed_tokens.weight"]
    return made


def _flag(name: str, value: bool) -> Source:
    return Source(name, (), torch.bool, (), "made up", lambda: torch.tensor(value))


def _in_float32(source: Source) -> Source:
    return dataclasses.replace(
        source, dtype=torch.float32, read=lambda: source.read().to(torch.float32)
    )
