"""Small policies in run folders of starVLA."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import torch
import yaml

from models.anchorvla4d.presets import demo
from models.chat import PromptConfig, own_chat
from models.eventvla import presets as eventvla
from models.eventvla.config import EventVLAConfig
from models.families import CONFIGS, FAMILIES
from models.networks.config import FlowDiTConfig, MLPResNetConfig
from models.networks.published import tiny_qwen, tiny_qwen3
from models.policy_config import NormalizationConfig
from models.qwengr00t.config import MODEL_TYPE, QwenGR00TConfig
from models.qwenoft.config import QwenOFTConfig
from tests.models.synthesized import command

THOUGHT = "Your task is {instruction}. Locate what you need, then act."
SEED = 5
PT = "checkpoints/steps_1000_pytorch_model.pt"
SAFETENSORS = "checkpoints/steps_1000_model.safetensors"


def two_arms() -> QwenGR00TConfig:
    """Every structural feature: a windowed and a full vision block, an interleaved head, a state,
    several views and a text of its own; as the mix `robotwin` is normalized."""
    base = demo()
    modes = ("min_max_or_zero",) * 12
    units = ("rad",) * 12 + ("fraction",) * 2
    return QwenGR00TConfig(
        vision=dataclasses.replace(base.vision, depth=2, fullatt_block_indexes=(1,)),
        language=dataclasses.replace(base.language, num_hidden_layers=2, rms_norm_eps=1e-5),
        head=FlowDiTConfig(
            num_layers=4, num_heads=3, head_dim=8, action_dim=14, action_horizon=6, state_dim=14,
            hidden_size=40, output_dim=20, num_future_tokens=3, max_seq_len=30,
            num_inference_timesteps=2, num_timestep_buckets=500,
        ),
        normalization=NormalizationConfig(
            action=modes + ("binary",) * 2,
            state=modes + ("threshold",) * 2,
            action_units=units,
            state_units=units,
        ),
        views=("cam_high", "cam_left_wrist", "cam_right_wrist"),
        takes_state=True,
        prompt=PromptConfig(text=THOUGHT),
    )  # fmt: skip


def bridge() -> QwenGR00TConfig:
    """As Bridge's runs are: one view, no state, an encoder that was never used, all-cross."""
    base = two_arms()
    return dataclasses.replace(
        base,
        head=dataclasses.replace(
            base.head, action_dim=7, state_dim=7, output_dim=40, interleave_self_attention=False
        ),
        normalization=NormalizationConfig(
            action=("q99_clipped",) * 6 + ("binary",),
            state=(),
            action_units=("m/step",) * 3 + ("rad/step",) * 3 + ("fraction",),
            state_units=(),
        ),
        views=("image_0",),
        takes_state=False,
        prompt=PromptConfig(),
    )


def of_ones_own() -> QwenGR00TConfig:
    """Normalized as no mix of starVLA's is; no positions, no encoder of states, other patches."""
    base = bridge()
    vision = dataclasses.replace(base.vision, patch_size=8, temporal_patch_size=1, window_size=64)
    head = dataclasses.replace(base.head, state_dim=None, add_pos_embed=False, max_seq_len=1024)
    normalization = dataclasses.replace(base.normalization, action=("q99",) * 6 + ("identity",))
    return dataclasses.replace(
        base, vision=vision, head=head, normalization=normalization, views=("hand", "eye")
    )


def on_qwen3() -> QwenGR00TConfig:
    """On the other backbone, as Bridge's runs are normalized."""
    vision, language = tiny_qwen3()
    prompt = own_chat(language)
    return dataclasses.replace(bridge(), vision=vision, language=language, prompt=prompt)


def token_actions() -> QwenOFTConfig:
    """The other framework, as LIBERO's runs are normalized."""
    base = bridge()
    return QwenOFTConfig(
        vision=base.vision,
        language=base.language,
        head=MLPResNetConfig(action_dim=7, action_horizon=5),
        normalization=base.normalization,
        views=base.views,
        prompt=PromptConfig(text=THOUGHT),
    )


def remembers() -> EventVLAConfig:
    """A framework with a memory, as RoboTwin-Mem's runs are normalized."""
    base = eventvla.tiny()
    joints = ("min_max_or_zero",) * 12
    return dataclasses.replace(
        base,
        head=dataclasses.replace(base.head, action_dim=14),
        normalization=NormalizationConfig(
            action=joints + ("identity",) * 2,
            state=(),
            action_units=("rad",) * 12 + ("fraction",) * 2,
            state_units=(),
        ),
        views=("cam_high", "cam_left_wrist", "cam_right_wrist"),
        main_view="cam_high",
        prompt=own_chat(base.language, THOUGHT),
    )


def silent() -> EventVLAConfig:
    """The same on the older backbone, without pictures of the past, and with a silent head."""
    vision, language = tiny_qwen()
    return dataclasses.replace(
        remembers(), vision=vision, language=language, delays=(), predicts_keyframes=False,
        prompt=own_chat(language), observation_label="", keyframe_label="",
    )  # fmt: skip


PRESETS = {
    "two-arms": two_arms,
    "bridge-like": bridge,
    "own": of_ones_own,
    "qwen3": on_qwen3,
    "token-actions": token_actions,
    "remembers": remembers,
    "silent": silent,
}


def register(monkeypatch) -> None:
    """Give the small configurations their names."""
    for name, make in PRESETS.items():
        family = make().model_type
        entry = FAMILIES[family]
        presets = {**entry.presets, name: make}
        monkeypatch.setitem(FAMILIES, family, dataclasses.replace(entry, presets=presets))
        monkeypatch.setitem(CONFIGS, name, make)


def synthesized(out: Path, name: str, *words: object) -> Path:
    family = PRESETS[name]().model_type if name in PRESETS else MODEL_TYPE
    line = ["--family", family, "--config", name, "--seed", SEED, "--outlier-channels", 2]
    assert command("synthesize", *line, *words, "--out", out) == 0
    return out


def edit_yaml(folder: Path, edit, name: str = "config.yaml") -> None:
    """Change a run's settings."""
    path = folder / name
    raw = yaml.safe_load(path.read_text())
    edit(raw)
    path.write_text(yaml.safe_dump(raw, sort_keys=False))


def edit_weights(folder: Path, edit) -> None:
    """Change what the file of weights holds."""
    state = torch.load(folder / PT, weights_only=True)
    edit(state)
    torch.save(state, folder / PT)


def settings(raw, *path):
    """What lies under these names."""
    for name in path:
        raw = raw[name]
    return raw


def write_statistics(folder: Path, **robots) -> None:
    (folder / "dataset_statistics.json").write_text(json.dumps(robots))


def numbers(width: int, seed: int = 0) -> dict[str, list[float]]:
    """Statistics of one vector, none like another."""
    random = np.random.default_rng(seed)
    low, high = -1 - random.random((2, width)), 1 + random.random((2, width))
    return {
        "min": low[0].tolist(), "max": high[0].tolist(), "q01": (low[1] / 3).tolist(),
        "q99": (high[1] / 3).tolist(), "mean": random.normal(size=width).tolist(),
        "std": (0.1 + random.random(width)).tolist(),
    }  # fmt: skip
