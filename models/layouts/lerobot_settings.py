"""Settings of a folder of LeRobot's: config.json, and what its processors normalize with.

In: the files. Out: what they say of a policy, or a refusal by name. What the networks here do in
one way only is compared with what is stated; what has no part in actions is known by name, and a
setting that nobody here knows is refused. Light to import: no torch.

Source: LeRobot 0.6.1, policies/smolvla/configuration_smolvla.py, configs/policies.py and
processor/normalize_processor.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from models.json_file import read_object

CONFIG, POLICY, TOKENIZER = "config.json", "policy.json", "tokenizer.json"
PREPROCESSOR, POSTPROCESSOR = "policy_preprocessor.json", "policy_postprocessor.json"
TYPE = "smolvla"
MODES = {"MEAN_STD": "mean_std", "MIN_MAX": "min_max", "IDENTITY": "identity", "QUANTILES": "q99"}
"""LeRobot's of a whole vector -> ours of each of its numbers."""
IMAGES = "observation.images."
EMPTY = "empty_camera_"
"""How the names of cameras begin that are not there: LeRobot hides their pictures."""
STATE, ACTION = "observation.state", "action"

ACCEPTED: Mapping[str, tuple[Any, ...]] = {
    "attention_mode": ("cross_attn",),
    "add_image_special_tokens": (False,),
    "adapt_to_pi_aloha": (False,),
    "use_delta_joint_actions_aloha": (False,),
    "use_cache": (True,),
    "use_peft": (False,),
    "n_obs_steps": (1,),
}
"""What is done in one way here."""
DEFAULTS: Mapping[str, Any] = {
    "vlm_model_name": "HuggingFaceTB/SmolVLM2-500M-Video-Instruct",
    "chunk_size": 50,
    "max_state_dim": 32,
    "max_action_dim": 32,
    "resize_imgs_with_padding": [512, 512],
    "tokenizer_max_length": 48,
    "num_steps": 10,
    "num_vlm_layers": 16,
    "num_expert_layers": -1,
    "self_attn_every_n_layers": 2,
    "expert_width_multiplier": 0.75,
    "min_period": 4e-3,
    "max_period": 4.0,
}
"""What is honoured, and LeRobot's value where a file does not say."""
FEATURES = ("input_features", "output_features", "normalization_mapping")
NO_PART = (
    "type", "n_action_steps", "empty_cameras", "device", "use_amp", "push_to_hub", "repo_id",
    "private", "tags", "license", "pretrained_path", "pretrained_revision", "load_vlm_weights",
    "freeze_vision_encoder", "train_expert_only", "train_state_proj", "prefix_length",
    "pad_language_to", "rtc_config", "compile_model", "compile_mode",
)  # fmt: skip
"""Of training, of where it is run and kept, and of padding, which is hidden from all rows."""
TRAINING = ("optimizer_", "scheduler_")
"""How the names of others begin that have no part."""


@dataclass(frozen=True, slots=True)
class Settings:
    """What config.json says."""

    values: Mapping[str, Any]
    """Of `DEFAULTS`."""
    cameras: tuple[str, ...]
    """Keys of pictures, in the order in which they are shown; those that are not there left out."""
    left_out: tuple[str, ...]
    """Those."""
    state_dim: int
    action_dim: int
    modes: Mapping[str, str]
    """Of `state` and `action`."""


def is_in(path: Path) -> bool:
    """Is it a folder of such a policy?"""
    file = path / CONFIG
    try:
        return path.is_dir() and file.is_file() and read_object(file).get("type") == TYPE
    except ValueError:
        return False


def read_settings(path: Path) -> Settings:
    """Of a config.json.

    Raises:
        ValueError: a setting that is not honoured, or is none of LeRobot's; names it.
    """
    raw = read_object(path)
    for name, accepted in ACCEPTED.items():
        if name in raw and not any(raw[name] is a or raw[name] == a for a in accepted):
            raise ValueError(
                f"{path}: {name}={raw[name]!r} is not here, only {' or '.join(map(repr, accepted))}"
            )
    known = {*ACCEPTED, *DEFAULTS, *FEATURES, *NO_PART}
    if unknown := sorted(n for n in raw.keys() - known if not n.startswith(TRAINING)):
        raise ValueError(
            f"{path}: unknown settings {unknown}: whether they change actions is not known; remove "
            "them if they do not"
        )
    values = {name: raw.get(name, usual) for name, usual in DEFAULTS.items()}
    for name, usual in DEFAULTS.items():
        kinds = (int, float) if isinstance(usual, float) else (type(usual),)
        if isinstance(values[name], bool) or not isinstance(values[name], kinds):
            raise ValueError(f"{path}: {name} must be like {usual!r}, got {values[name]!r}")
    inputs, outputs, mapping = (_object(path, raw, name) for name in FEATURES)
    pictures = tuple(key for key, of in inputs.items() if _type(of) == "VISUAL")
    cameras = tuple(key for key in pictures if not _last(key).startswith(EMPTY))
    others = [key for key in inputs if key not in (*pictures, STATE)]
    if others or not cameras or STATE not in inputs or list(outputs) != [ACTION]:
        raise ValueError(
            f"{path}: input_features must hold pictures and {STATE}, and output_features {ACTION}, "
            f"got {list(inputs)} and {list(outputs)}"
        )
    return Settings(
        values=values,
        cameras=cameras,
        left_out=tuple(key for key in pictures if key not in cameras),
        state_dim=_width(path, STATE, inputs[STATE]),
        action_dim=_width(path, ACTION, outputs[ACTION]),
        modes={
            "state": _mode(path, mapping, "STATE"),
            "action": _mode(path, mapping, "ACTION"),
        }
        | {"pictures": _mode(path, mapping, "VISUAL", only="IDENTITY")},
    )


def view_of(camera: str) -> str:
    """observation.images.top -> top, and observation.image -> image."""
    return _last(camera)


def state_file(path: Path, step: str) -> Path:
    """Where a processor's file says that the numbers of a step are.

    Args:
        path: of `PREPROCESSOR` or `POSTPROCESSOR`.
        step: its registered name.

    Raises:
        ValueError: no such step, or several; or its file is missing.
    """
    if not path.is_file():
        raise ValueError(
            f"{path}: missing: without it nobody knows how numbers are normalized. LeRobot's "
            "processor/migrate_policy_normalization.py makes one for an older folder"
        )
    steps = read_object(path).get("steps")
    listed = [each for each in steps if isinstance(each, dict)] if isinstance(steps, list) else []
    found = [each.get("state_file") for each in listed if each.get("registry_name") == step]
    if len(found) != 1 or not isinstance(found[0], str) or Path(found[0]).name != found[0]:
        raise ValueError(f"{path}: one step {step} with a state_file is wanted, got {found}")
    file = path.with_name(found[0])
    if not file.is_file():
        raise ValueError(f"{file}: missing, and {path.name} names it")
    return file


def _last(key: str) -> str:
    return key.rsplit(".", 1)[-1]


def _object(path: Path, raw: Mapping[str, Any], name: str) -> dict[str, Any]:
    found = raw.get(name)
    if not isinstance(found, dict) or not found:
        raise ValueError(f"{path}: {name} must be an object that says something, got {found!r}")
    return found


def _type(feature: Any) -> Any:
    return feature.get("type") if isinstance(feature, dict) else None


def _width(path: Path, name: str, feature: Any) -> int:
    shape = feature.get("shape") if isinstance(feature, dict) else None
    if not isinstance(shape, list) or len(shape) != 1 or type(shape[0]) is not int or shape[0] < 1:
        raise ValueError(f"{path}: {name} must have a shape of one number, got {feature!r}")
    return int(shape[0])


def _mode(path: Path, mapping: Mapping[str, Any], kind: str, only: str = "") -> str:
    stated = mapping.get(kind)
    if stated not in MODES or (only and stated != only):
        wanted = only or " or ".join(MODES)
        raise ValueError(f"{path}: normalization_mapping.{kind} must be {wanted}, got {stated!r}")
    return MODES[str(stated)]
