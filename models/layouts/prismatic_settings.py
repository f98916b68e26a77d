"""Settings of a folder of Prismatic's kind, as VLA-Adapter publishes one: config.json and
preprocessor_config.json.

In: the files. Out: what they say of a policy, or a refusal by name. What the networks here do in
one way only is compared with what is stated, and what is not stated is believed. Light to import:
no torch.

Source: VLA-Adapter at snapshot 838a36d, pretrained_models/configs/ for both files and
processing_prismatic.py for which of the second file's settings are applied.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from models.json_file import read_object
from models.networks.prismatic_config import PrismaticVisionConfig, ViTConfig
from models.networks.published import dinosiglip_224

CONFIG, POLICY, PREPROCESSOR = "config.json", "policy.json", "preprocessor_config.json"
TOKENIZER, STATISTICS = "tokenizer.json", "dataset_statistics.json"
MODEL_TYPE, ARCHITECTURE = "openvla", "OpenVLAForActionPrediction"
COPY = "copy it from where the weights are published"
ADAPTER = "lora_adapter"
PARTS = ("action_head", "proprio_projector")
"""Files of torch beside the weights: names that hold one of these, and `CHECKPOINT`."""
CHECKPOINT = "checkpoint"
_TOWERS = dinosiglip_224(1)
TOWERS: Mapping[str, ViTConfig] = {
    "vit_large_patch14_reg4_dinov2.lvd142m": _TOWERS.featurizer,
    "vit_so400m_patch14_siglip_224": _TOWERS.fused_featurizer,
}
"""What is known of timm's models, which a folder names in this order."""
OTHER_MODELS = "OpenVLA and OpenVLA-OFT stand on a Llama, and are not here"
LANGUAGE_MODELS = ("qwen25-0_5b-extra", "qwen25-0_5b-pure")
ACCEPTED: Mapping[str, tuple[Any, ...]] = {
    "vision_backbone_id": ("dinosiglip-vit-so-224px",),
    "timm_model_ids": (list(TOWERS),),
    "timm_override_act_layers": ([None, None],),
    "arch_specifier": ("no-align+fused-gelu-mlp",),
    "image_resize_strategy": ("resize-naive",),
    "llm_backbone_id": LANGUAGE_MODELS,
}
"""Of config.json, in the order in which they are looked at; all else has no part in actions."""
TEXT_ACCEPTED: Mapping[str, tuple[Any, ...]] = {
    "model_type": ("qwen2",),
    "hidden_act": ("silu",),
    "use_sliding_window": (False, None),
    "use_mrope": (False, None),
}
_BICUBIC = 3
"""As torchvision counts Pillow's filters."""


@dataclass(frozen=True, slots=True)
class Settings:
    """What config.json says."""

    path: Path
    text: Mapping[str, Any]
    """Of the language model; may be empty."""
    image_sizes: Any
    """Sides of the square that each tower sees, as they are stated; None where they are not."""


def is_in(path: Path) -> bool:
    """Is it a folder as VLA-Adapter, OpenVLA and their relatives leave one, merged or not?"""
    if not path.is_dir():
        return False
    stated = _object(path / CONFIG)
    if stated:
        named = stated.get("architectures")
        is_named = isinstance(named, list) and ARCHITECTURE in named
        return stated.get("model_type") == MODEL_TYPE or is_named
    return bool(parts(path, PARTS[0])) and not (path / CONFIG).exists()


def parts(folder: Path, part: str) -> list[Path]:
    """Files that hold a part of the policy, by the authors' own rule."""
    return sorted(
        file
        for file in folder.iterdir()
        if part in file.name and CHECKPOINT in file.name and file.is_file()
    )


def read_settings(path: Path) -> Settings:
    """
    Raises:
        ValueError: config.json is missing or no JSON, or says what is not honoured here.
    """
    if not path.is_file():
        raise ValueError(f"{path}: missing; {COPY}")
    raw = read_object(path)
    if raw.get("use_fused_vision_backbone") is False:
        raise ValueError(
            f"{path}: use_fused_vision_backbone=False is a policy with a single vision tower, "
            "which is not here; two are, DINOv2 and SigLIP"
        )
    _refuse_others(path, "", raw, ACCEPTED)
    text = raw.get("text_config") or {}
    if not isinstance(text, dict):
        raise ValueError(f"{path}: text_config must be an object, got {text!r}")
    _refuse_others(path, "text_config.", text, TEXT_ACCEPTED)
    return Settings(path, text, raw.get("image_sizes"))


def check_images(path: Path, vision: PrismaticVisionConfig) -> None:
    """Compare preprocessor_config.json with what is done here.

    Raises:
        ValueError: it is missing or no JSON, does not say how pictures are normalized, or says
            something else.
    """
    if not path.is_file():
        raise ValueError(f"{path}: missing; {COPY}")
    raw, wanted = read_object(path), image_settings(vision)
    if "tvf_normalize_params" not in raw:
        raise ValueError(
            f"{path}: tvf_normalize_params is missing, and says what pictures are normalized with"
        )
    if unknown := sorted(raw.keys() - wanted.keys() - {"auto_map", "processor_class"}):
        raise ValueError(
            f"{path}: unknown settings {unknown}: whether they change the picture is not known; "
            "remove them if they do not"
        )
    for name, value in raw.items():
        want = wanted.get(name, value)
        # These two were rounded before they were used, and may be stated as they were before.
        got = _rounded(value) if name in ("means", "stds") else value
        if got != want:
            raise ValueError(f"{path}: {name}={value!r} is not honoured, only {want!r}")


def image_settings(vision: PrismaticVisionConfig) -> dict[str, Any]:
    """preprocessor_config.json as the authors have it, for these towers."""
    side, towers = vision.image_size, (vision.featurizer, vision.fused_featurizer)
    resize = {"antialias": True, "interpolation": _BICUBIC, "max_size": None, "size": [side, side]}
    return {
        "image_processor_type": "PrismaticImageProcessor",
        "image_resize_strategy": "resize-naive",
        "input_sizes": [[3, side, side] for _ in towers],
        "interpolations": ["bicubic" for _ in towers],
        "means": [list(tower.image_mean) for tower in towers],
        "stds": [list(tower.image_std) for tower in towers],
        "tvf_crop_params": [{"output_size": [side, side]} for _ in towers],
        "tvf_do_letterbox": False,
        "tvf_letterbox_fill": None,
        "tvf_normalize_params": [
            {"inplace": False, "mean": list(tower.image_mean), "std": list(tower.image_std)}
            for tower in towers
        ],
        "tvf_resize_params": [resize for _ in towers],
        "use_fused_vision_backbone": True,
    }


def _refuse_others(
    path: Path, where: str, raw: Mapping[str, Any], accepted: Mapping[str, tuple[Any, ...]]
) -> None:
    for name, values in accepted.items():
        if name in raw and raw[name] not in values:
            other = f" {OTHER_MODELS}" if name == "llm_backbone_id" else ""
            raise ValueError(
                f"{path}: {where}{name}={raw[name]!r} is not honoured, only "
                f"{' or '.join(map(repr, values))}.{other}"
            )


def _rounded(value: Any) -> Any:
    """Numbers as bfloat16 has them, to the nearest and of two to the even one."""
    if isinstance(value, list):
        return [_rounded(item) for item in value]
    if not isinstance(value, float):
        return value
    bits = int(np.float32(value).view(np.uint32))
    bits = (bits + 0x7FFF + (bits >> 16 & 1)) & 0xFFFF0000
    return float(np.uint32(bits).view(np.float32))


def _object(path: Path) -> dict[str, Any]:
    try:
        return read_object(path) if path.is_file() else {}
    except ValueError:
        return {}
