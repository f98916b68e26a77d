"""Settings of a folder of UP-VLA: config.json of its model, and what its authors keep apart.

In: the files. Out: what they say of a policy, or a refusal by name. Numbers that tensors show too
are left for `showo` to compare; what is done in one way only is compared here, and what no file
says is believed and told. Light to import: no torch.

Source: UP-VLA at snapshot be2ef35, policy_rollout/calvin_evaluate_upvla.py for what is loaded from
where, policy_rollout/upvla_model.yaml for settings, models/modeling_upvla.py and
models/modeling_utils.py for what is saved.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from models.json_file import read_object
from models.layouts.starvla_config import read_settings as read_yaml

CONFIG, POLICY, TOKENIZER = "config.json", "policy.json", "tokenizer.json"
MODEL = "unwrapped_model"
"""The model's own folder in what a training saves; its files may also lie without it."""
VQ, PHI, ROLLOUT = "magvitv2", "phi-1_5", "upvla_model.yaml"
"""Beside it: the picture tokenizer, the language model's tokenizer, settings of the rollout."""
BIN, SAFETENSORS = "pytorch_model.bin", "pytorch_model.safetensors"
"""What weights are saved in, one or the other."""
CLASS, BASE, VQ_CLASS = "Upvla", "Showo", "MAGVITv2"
"""Of `_class_name`. The rollout takes the settings of the base, which name another class."""
BASE_FROM, VQ_FROM, PHI_FROM = (
    "showlab/show-o-w-clip-vit-512x512", "showlab/magvitv2", "microsoft/phi-1_5",
)  # fmt: skip
VIEWS = {1: ("frame",), 2: ("frame", "wrist")}
"""By their number: the static camera, and then the gripper's."""
NUM_VIEWS, MAX_SEQ_LENGTH = 1, 576
"""As published; tokens of a text, the one in front of it not counted."""
_PLACES: Mapping[str, tuple[str, ...]] = {
    "act_step": ("act_step",),
    "num_view": ("model", "vla", "num_view"),
    **{
        name: ("model", "showo", name)
        for name in (
            "vocab_size", "llm_vocab_size", "codebook_size", "num_vq_tokens",
            "num_new_special_tokens",
        )
    },
    **{n: ("dataset", "preprocessing", n) for n in ("max_seq_length", "resolution")},
}  # fmt: skip
"""Where the rollout's settings have what is asked of them."""
_SIZES = ("vocab_size", "llm_vocab_size", "codebook_size", "num_vq_tokens", "act_step")
"""Of config.json."""
_TEXT: Mapping[str, tuple[Any, ...]] = {"model_type": ("phi",), "hidden_act": ("gelu_new",)}
"""Of the language model. `qk_layernorm` is not asked for: the authors' class sets it."""


@dataclass(frozen=True, slots=True)
class Settings:
    """What the files say."""

    stated: tuple[tuple[str, str, int], ...]
    """File, name and value of each number that tensors show too."""
    num_codes: int
    """Of a picture."""
    num_views: int
    max_text: int
    """Tokens up to the pictures."""
    text: Mapping[str, Any]
    """Of the language model; empty where its file is not there."""
    text_path: Path
    notes: tuple[str, ...]
    """What is believed without being seen."""


def is_in(path: Path) -> bool:
    """Is it what a training of UP-VLA saves, or a folder of such a model?"""
    if not path.is_dir():
        return False
    inside = path / MODEL
    stated = _object(model_folder(path) / CONFIG)
    named = stated.get("_class_name") in (CLASS, BASE)
    return named or any((inside / name).is_file() for name in (BIN, SAFETENSORS))


def model_folder(path: Path) -> Path:
    """Where weights and settings of the model itself are."""
    return path / MODEL if (path / MODEL).is_dir() else path


def weights_file(folder: Path, source: str) -> Path:
    """The one that holds a model.

    Args:
        source: where it is published.

    Raises:
        ValueError: there is none, or two.
    """
    found = [folder / name for name in (BIN, SAFETENSORS) if (folder / name).is_file()]
    if not found:
        raise ValueError(f"{folder}: neither {BIN} nor {SAFETENSORS} in it; copy it from {source}")
    if len(found) > 1:
        raise ValueError(f"{folder}: holds {BIN} and {SAFETENSORS}; remove one of the two")
    return found[0]


def read_settings(path: Path) -> Settings:
    """
    Raises:
        ValueError: a file is missing or damaged, or says what is not honoured here.
    """
    config = model_folder(path) / CONFIG
    if not config.is_file():
        raise ValueError(
            f"{config}: missing; copy that of {BASE_FROM}, whose settings the authors' rollout "
            "takes"
        )
    raw = read_object(config)
    _check_class(config, raw, (CLASS, BASE))
    if (path / VQ / CONFIG).is_file():
        _check_class(path / VQ / CONFIG, read_object(path / VQ / CONFIG), (VQ_CLASS,))
    numbers = [(config, n, _whole(config, n, raw[n])) for n in _SIZES if raw.get(n) is not None]
    notes: list[str] = []
    rollout = path / ROLLOUT
    if rollout.is_file():
        numbers += _rollout(rollout)
    else:
        notes.append(
            f"no {ROLLOUT} beside the weights: {NUM_VIEWS} view and texts of {MAX_SEQ_LENGTH} "
            "tokens, as published"
        )
    text, text_path = {}, path / PHI / CONFIG
    if text_path.is_file():
        text = read_object(text_path)
        _refuse_others(text_path, text, _TEXT)
    values = {name: value for _, name, value in reversed(numbers)}
    if "num_vq_tokens" not in values:
        raise ValueError(
            f"{config}: num_vq_tokens is missing, and says how many codes stand for a picture"
        )
    apart = ("num_view", "max_seq_length")
    compared = tuple((str(file), name, n) for file, name, n in numbers if name not in apart)
    num_views = values.get("num_view", NUM_VIEWS)
    if num_views not in VIEWS:
        raise ValueError(f"{rollout}: num_view={num_views} is not here, only 1 or 2, as theirs is")
    return Settings(
        stated=compared,
        num_codes=values["num_vq_tokens"],
        num_views=num_views,
        max_text=values.get("max_seq_length", MAX_SEQ_LENGTH) + 1,
        text=text,
        text_path=text_path,
        notes=tuple(notes),
    )


def _rollout(path: Path) -> list[tuple[Path, str, int]]:
    """
    Raises:
        ValueError: it is damaged, or of another picture tokenizer.
    """
    raw = read_yaml(path)
    kind = _at(path, raw, ("model", "vq_model", "type"))
    if kind not in (None, VQ):
        raise ValueError(f"{path}: model.vq_model.type={kind!r} is not honoured, only {VQ!r}")
    found = {name: _at(path, raw, place) for name, place in _PLACES.items()}
    return [(path, n, _whole(path, n, value)) for n, value in found.items() if value is not None]


def _at(path: Path, raw: Any, place: tuple[str, ...]) -> Any:
    """What stands there; nothing where nothing does."""
    for depth, name in enumerate(place):
        if raw is None:
            return None
        if not isinstance(raw, dict):
            raise ValueError(f"{path}: {'.'.join(place[:depth])} must hold settings, got {raw!r}")
        raw = raw.get(name)
    return raw


def _check_class(path: Path, raw: Mapping[str, Any], known: tuple[str, ...]) -> None:
    _refuse_others(path, {"_class_name": raw.get("_class_name")}, {"_class_name": known})


def _refuse_others(
    path: Path, raw: Mapping[str, Any], accepted: Mapping[str, tuple[Any, ...]]
) -> None:
    for name, values in accepted.items():
        if name in raw and raw[name] not in values:
            raise ValueError(
                f"{path}: {name}={raw[name]!r} is not honoured, only "
                f"{' or '.join(map(repr, values))}"
            )


def _whole(path: Path, name: str, value: Any) -> int:
    if type(value) is not int or value < 1:
        raise ValueError(f"{path}: {name} must be a whole number from 1, got {value!r}")
    return value


def _object(path: Path) -> dict[str, Any]:
    try:
        return read_object(path) if path.is_file() else {}
    except ValueError:
        return {}
