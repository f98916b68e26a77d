"""Small policies in folders as VLA-Adapter's authors publish them, and how their files change."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from models.families import CONFIGS, FAMILIES
from models.networks.config import BridgeConfig
from models.vlaadapter.config import MODEL_TYPE, VLAAdapterConfig
from models.vlaadapter.presets import libero, tiny
from tests.models.synthesized import command

SEED = 7
WEIGHTS, HEAD, PROPRIO = (
    "model.safetensors", "action_head--checkpoint.pt", "proprio_projector--checkpoint.pt",
)  # fmt: skip
OWN, CONFIG, STATISTICS, PREPROCESSOR = (
    "anchorvla.json", "config.json", "dataset_statistics.json", "preprocessor_config.json",
)  # fmt: skip


def like_libero() -> VLAAdapterConfig:
    """Small networks, as LIBERO's policies act."""
    head = BridgeConfig(action_dim=7, action_horizon=8, state_dim=8, num_queries=6)
    language = dataclasses.replace(tiny().language, rms_norm_eps=1e-5, rope_theta=1000.0)
    return dataclasses.replace(
        tiny(), head=head, language=language, normalization=libero().normalization
    )


PRESETS = {"tiny": tiny, "like-libero": like_libero}


def register(monkeypatch) -> None:
    """Give the small configurations their names."""
    entry = FAMILIES[MODEL_TYPE]
    presets = {**entry.presets, **PRESETS}
    monkeypatch.setitem(FAMILIES, MODEL_TYPE, dataclasses.replace(entry, presets=presets))
    for name, make in PRESETS.items():
        monkeypatch.setitem(CONFIGS, name, make)


def synthesized(out: Path, name: str, *words: object) -> Path:
    line = ["--family", MODEL_TYPE, "--config", name, "--seed", SEED, "--outlier-channels", 2]
    assert command("synthesize", *line, *words, "--out", out) == 0
    return out


def edit_tensors(folder: Path, edit) -> None:
    """Change what the safetensors hold."""
    state = load_file(folder / WEIGHTS)
    edit(state)
    save_file(state, folder / WEIGHTS, {"format": "pt"})


def edit_part(folder: Path, edit, name: str = HEAD) -> None:
    """Change what a file of torch holds."""
    state = torch.load(folder / name, weights_only=True)
    torch.save(edit(state) or state, folder / name)


def read(path: Path):
    return json.loads(path.read_text())
