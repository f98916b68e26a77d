"""The families of policies, by the `model_type` of their configurations. Light to import: no torch.

A family is a folder of `models/` with the same modules in each: `config`, `presets`, `model`,
`split`, `work`, `checkpoint`, `reference`, and `family`, which joins them as `models.family.Family`
asks. Whatever quantizes, exports, forecasts or measures a policy goes through this table and names
no family.
"""

from __future__ import annotations

import dataclasses
import importlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from models.anchorvla4d import config as anchorvla4d
from models.anchorvla4d import presets as anchorvla4d_presets
from models.eventvla import config as eventvla
from models.eventvla import presets as eventvla_presets
from models.fields import parse
from models.json_file import read_object
from models.policy_config import PolicyConfig
from models.qwengr00t import config as qwengr00t
from models.qwengr00t import presets as qwengr00t_presets
from models.qwenoft import config as qwenoft
from models.qwenoft import presets as qwenoft_presets
from models.sgvla import config as sgvla
from models.sgvla import presets as sgvla_presets
from models.smolvla import config as smolvla
from models.smolvla import presets as smolvla_presets
from models.upvla import config as upvla
from models.upvla import presets as upvla_presets
from models.vlaadapter import config as vlaadapter
from models.vlaadapter import presets as vlaadapter_presets

if TYPE_CHECKING:  # and so mypy sees that each family is one
    from models.anchorvla4d import family as _anchorvla4d
    from models.eventvla import family as _eventvla
    from models.family import Family
    from models.qwengr00t import family as _qwengr00t
    from models.qwenoft import family as _qwenoft
    from models.sgvla import family as _sgvla
    from models.smolvla import family as _smolvla
    from models.upvla import family as _upvla
    from models.vlaadapter import family as _vlaadapter

    _checked: list[Family] = [
        _anchorvla4d, _qwengr00t, _qwenoft, _eventvla, _vlaadapter, _smolvla, _upvla, _sgvla,
    ]  # fmt: skip

HUGGING_FACE = ("architectures", "transformers_version", "torch_dtype", "text_config")
"""Fields that transformers writes into every config.json of its own."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A row of the table."""

    config: Any
    """The dataclass of its configurations."""
    presets: Mapping[str, Callable[[], PolicyConfig]]
    """Those that have a name."""
    module: str
    """Of the rest, a `models.family.Family`; it takes torch, and is imported when asked for."""
    framework: str = ""
    """What starVLA calls it, whose run folders it is read from."""


FAMILIES: Mapping[str, Entry] = {
    anchorvla4d.MODEL_TYPE: Entry(
        anchorvla4d.AnchorVLA4DConfig, anchorvla4d_presets.CONFIGS, "models.anchorvla4d.family"
    ),
    qwengr00t.MODEL_TYPE: Entry(
        qwengr00t.QwenGR00TConfig,
        qwengr00t_presets.CONFIGS,
        "models.qwengr00t.family",
        "QwenGR00T",
    ),
    qwenoft.MODEL_TYPE: Entry(
        qwenoft.QwenOFTConfig, qwenoft_presets.CONFIGS, "models.qwenoft.family", "QwenOFT"
    ),
    eventvla.MODEL_TYPE: Entry(
        eventvla.EventVLAConfig, eventvla_presets.CONFIGS, "models.eventvla.family", "EventVLA"
    ),
    vlaadapter.MODEL_TYPE: Entry(
        vlaadapter.VLAAdapterConfig, vlaadapter_presets.CONFIGS, "models.vlaadapter.family"
    ),
    smolvla.MODEL_TYPE: Entry(
        smolvla.SmolVLAConfig, smolvla_presets.CONFIGS, "models.smolvla.family"
    ),
    upvla.MODEL_TYPE: Entry(upvla.UPVLAConfig, upvla_presets.CONFIGS, "models.upvla.family"),
    sgvla.MODEL_TYPE: Entry(sgvla.SGVLAConfig, sgvla_presets.CONFIGS, "models.sgvla.family"),
}
CONFIGS: Mapping[str, Callable[[], PolicyConfig]] = {
    name if family == anchorvla4d.MODEL_TYPE else f"{family}-{name}": make
    for family, entry in FAMILIES.items()
    for name, make in entry.presets.items()
}
"""All that have a name; AnchorVLA4D's need no family in front."""


def family_of(config: PolicyConfig) -> Family:
    """Of a configuration."""
    return cast("Family", importlib.import_module(FAMILIES[config.model_type].module))


def to_json(config: PolicyConfig) -> str:
    """The text of `config.json`."""
    return json.dumps(dataclasses.asdict(config), indent=2) + "\n"


def read_config(path: Path) -> PolicyConfig:
    """Read `config.json`.

    Raises:
        ValueError: unknown or missing fields, wrong types, or values that do not fit together.
    """
    raw = read_object(path)
    if not raw.keys().isdisjoint(HUGGING_FACE):
        raise ValueError(
            f"{path}: a configuration of Hugging Face transformers (model_type "
            f"{raw.get('model_type')!r}), which knows no action head or normalization. Write one "
            "of a whole policy beside it, and set its sizes from this file: python -m models "
            "config full --out policy.json"
        )
    entry = FAMILIES.get(str(raw.get("model_type")))
    if entry is None:
        raise ValueError(
            f"{path}: model_type must be one of {sorted(FAMILIES)}, got {raw.get('model_type')!r}"
        )
    try:
        config: PolicyConfig = parse(entry.config, raw, "")
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    return config
