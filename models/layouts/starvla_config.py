"""`config.yaml` of a starVLA run: read without running anything, older spellings made the newest.

In: the file, or `config.json` of older runs. Out: what it says of a policy. Training writes the
settings that it looked up into config.yaml, and all of them into config.full.yaml. One that only a
worker process looked up (`include_state`) is in the second alone, which fills in where it is there.
Older spellings are those of `apply_config_compat` in starVLA's model/framework/share_tools.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from models.families import FAMILIES
from models.json_file import read_object, refuse_pointer

CONFIG, FULL, OLDER = "config.yaml", "config.full.yaml", "config.json"
MAX_BYTES = 1 << 20
"""Of a file of settings; published ones have some 5 kB."""
MAX_DEPTH = 32
TRAINED_SIZE = (224, 224)
"""Height and width that training brings every picture to, whatever the file says."""
INSTRUCTION = "{instruction}"


@dataclass(frozen=True, kw_only=True, slots=True)
class RunConfig:
    """What a run says of its policy. Sizes that tensors show are not believed but compared."""

    path: Path
    framework: str
    base_vlm: str
    framework_settings: Mapping[str, Any]
    """All of `framework`, of which a framework reads what is its own."""
    data_settings: Mapping[str, Any]
    """All of `datasets.vla_data`, likewise."""
    action_model: Mapping[str, Any]
    """`framework.action_model`, with an `action_horizon`."""
    data_mix: str
    action_mode: str
    include_state: bool | None
    """None where nothing is said, which is no to starVLA."""
    text: str
    image_size: tuple[int, int]
    """Height and width."""
    name: str
    notes: tuple[str, ...]
    """What was read in a way that one may want to know of."""


def is_in(path: Path) -> bool:
    """Is this a run folder, or a file of weights in one?"""
    if path.is_dir():
        return _is_run(path)
    return path.is_file() and path.suffix in (".pt", ".safetensors") and _is_run(path.parent.parent)


def _is_run(folder: Path) -> bool:
    stated = [_object(folder / name) for name in ("policy.json", OLDER)]
    if any(str(raw.get("model_type")) in FAMILIES for raw in stated):
        return False
    settings = ((folder / name).is_file() for name in (CONFIG, FULL))
    return any(settings) or isinstance(stated[1].get("framework"), dict)


def _object(path: Path) -> dict[str, Any]:
    try:
        return read_object(path) if path.is_file() else {}
    except ValueError:
        return {}


def read_run_config(folder: Path) -> RunConfig:
    """
    Raises:
        ValueError: a file that is no YAML of plain values, or lacks what a policy needs.
    """
    path = next(
        (folder / n for n in (CONFIG, FULL, OLDER) if (folder / n).is_file()), folder / CONFIG
    )
    raw = read_settings(path)
    if path.name == CONFIG and (folder / FULL).is_file():
        raw = _filled(raw, read_settings(folder / FULL))
    try:
        return _run_config(path, raw)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def read_settings(path: Path) -> dict[str, Any]:
    """A file of nested settings, YAML or JSON.

    Raises:
        ValueError: it is too large or nested, has aliases, tags of other types or a key twice, or
            is no mapping.
    """
    if not path.is_file():
        raise ValueError(f"{path}: missing")
    if path.stat().st_size > MAX_BYTES:
        raise ValueError(
            f"{path}: has {path.stat().st_size} bytes, settings have at most {MAX_BYTES}"
        )
    if path.suffix == ".json":
        return read_object(path)
    refuse_pointer(path)
    try:
        text = path.read_text("utf-8")
        _check_events(path, text)
        value = yaml.safe_load(text)
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        mark = getattr(error, "problem_mark", None)
        where = f" in line {mark.line + 1}" if mark else ""
        raise ValueError(f"{path}: not YAML of plain values{where} ({problem})") from None
    if not isinstance(value, dict):
        raise ValueError(f"{path}: must hold settings by name, got {type(value).__name__}")
    return value


def _check_events(path: Path, text: str) -> None:
    """Refuse what makes a small file large, and keys that hide others."""
    open_keys: list[set[str] | None] = []
    is_key = [False]
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        line = event.start_mark.line + 1
        if isinstance(event, yaml.AliasEvent):
            raise ValueError(f"{path}: an alias in line {line}; write out what it stands for")
        if isinstance(event, yaml.CollectionStartEvent):
            is_key[-1] = not is_key[-1]
            is_mapping = isinstance(event, yaml.MappingStartEvent)
            open_keys.append(set() if is_mapping else None)
            is_key.append(True)
            if len(open_keys) > MAX_DEPTH:
                raise ValueError(f"{path}: nested deeper than {MAX_DEPTH} in line {line}")
        elif isinstance(event, yaml.CollectionEndEvent):
            open_keys.pop()
            is_key.pop()
        elif isinstance(event, yaml.ScalarEvent):
            keys = open_keys[-1] if open_keys else None
            if keys is not None and is_key[-1]:
                if event.value in keys:
                    raise ValueError(f"{path}: {event.value!r} a second time in line {line}")
                keys.add(event.value)
            is_key[-1] = not is_key[-1]


def _filled(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, Any]:
    """`first`, and what only `second` says."""
    made = dict(second)
    for name, value in first.items():
        both = isinstance(value, dict) and isinstance(second.get(name), dict)
        made[name] = _filled(value, second[name]) if both else value
    return made


def _run_config(path: Path, raw: Mapping[str, Any]) -> RunConfig:
    framework = section(raw, "framework")
    data = section(section(raw, "datasets"), "vla_data", "datasets.vla_data")
    notes: list[str] = []
    action_model = dict(section(framework, "action_model", "framework.action_model"))
    action_model["action_horizon"] = _horizon(action_model, notes)
    vlm = section(framework, "qwenvl", "framework.qwenvl")
    return RunConfig(
        path=path,
        framework=word(framework, "name", "framework."),
        base_vlm=word(vlm, "base_vlm", "framework.qwenvl."),
        framework_settings=framework,
        data_settings=data,
        action_model=action_model,
        data_mix=word(data, "data_mix", "datasets.vla_data."),
        action_mode=str(data.get("action_mode") or "abs"),
        include_state=_include_state(data),
        text=word(data, "CoT_prompt", "datasets.vla_data.")
        if "CoT_prompt" in data
        else INSTRUCTION,
        image_size=_image_size(data),
        name=str(raw.get("run_id", path.parent.name)),
        notes=tuple(notes),
    )


def section(raw: Mapping[str, Any], name: str, whole: str = "") -> Mapping[str, Any]:
    """
    Raises:
        ValueError: it is not there, or no settings by name.
    """
    value = raw.get(name)
    if not isinstance(value, dict):
        raise ValueError(f"{whole or name} must hold settings by name, got {value!r}")
    return value


def word(raw: Mapping[str, Any], name: str, where: str = "") -> str:
    value = raw.get(name)
    if not isinstance(value, str) or not value:
        raise ValueError(f"{where}{name} must be a text, got {value!r}")
    return value


def whole(raw: Mapping[str, Any], name: str, where: str = "") -> int | None:
    """A number from 0 on, or None where nothing is said."""
    value = raw.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ValueError(f"{where}{name} must be a whole number, got {value!r}")
    return value


def _horizon(action_model: Mapping[str, Any], notes: list[str]) -> int:
    where = "framework.action_model."
    horizon = whole(action_model, "action_horizon", where)
    future = whole(action_model, "future_action_window_size", where)
    if past := whole(action_model, "past_action_window_size", where):
        raise ValueError(f"{where}past_action_window_size={past} is not honoured, only 0")
    if horizon is None and future is None:
        raise ValueError(
            f"{where}action_horizon is missing (future_action_window_size in older runs)"
        )
    if horizon is None:
        assert future is not None
        return future + 1
    if future is not None and future + 1 != horizon:
        notes.append(
            f"action_horizon={horizon} is believed, future_action_window_size={future} is not"
        )
    return horizon


def _include_state(data: Mapping[str, Any]) -> bool | None:
    stated = {"True": True, "False": False}.get(str(data.get("include_state")))
    if "include_state" in data and stated is None:
        raise ValueError(
            f"datasets.vla_data.include_state must be true or false, got {data['include_state']!r}"
        )
    return stated


def _image_size(data: Mapping[str, Any]) -> tuple[int, int]:
    """Height and width. `obs_image_size` goes to Pillow, which takes the width first; the others
    are older and count as a tensor does."""
    for name, count, order in (
        ("obs_image_size", 2, (1, 0)),
        ("image_size", 2, (0, 1)),
        ("default_image_resolution", 3, (1, 2)),
    ):
        size = data.get(name)
        if size is None:
            continue
        fits = isinstance(size, list) and len(size) == count
        if not fits or not all(type(side) is int and side > 0 for side in size):
            raise ValueError(
                f"datasets.vla_data.{name} must hold {count} whole numbers, got {size!r}"
            )
        return size[order[0]], size[order[1]]
    return TRAINED_SIZE
