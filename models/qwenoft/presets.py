"""Named configurations: each a function that returns a complete one."""

from __future__ import annotations

import dataclasses

from models.chat import PromptConfig, own_chat
from models.networks.config import MLPResNetConfig
from models.networks.published import (
    qwen2_5_vl_3b,
    qwen3_vl_4b,
    thin_qwen2_5_vl_3b,
    tiny_qwen,
    tiny_qwen3,
)
from models.policy_config import NormalizationConfig
from models.qwengr00t.presets import THOUGHT
from models.qwenoft.config import QwenOFTConfig


def bridge() -> QwenOFTConfig:
    """As published for the WidowX of Bridge: one camera, chunks of 16."""
    vision, language = qwen2_5_vl_3b()
    return QwenOFTConfig(
        vision=vision,
        language=language,
        head=MLPResNetConfig(action_dim=7, action_horizon=16),
        normalization=NormalizationConfig(
            action=("q99_clipped",) * 6 + ("binary",),
            state=(),
            action_units=("m/step",) * 3 + ("rad/step",) * 3 + ("fraction",),
            state_units=(),
        ),
        prompt=PromptConfig(text=THOUGHT),
        license="qwen-research (Qwen2.5-VL-3B); see the checkpoint's own card",
    )


def thin() -> QwenOFTConfig:
    """The published widths with few layers and a small vocabulary; two cameras."""
    base, (vision, language) = bridge(), thin_qwen2_5_vl_3b()
    return dataclasses.replace(
        base,
        vision=vision,
        language=language,
        views=("frame", "wrist"),
        license="none (random weights)",
    )


def tiny() -> QwenOFTConfig:
    """Every structure of it at widths of 128, for 112 x 112 images: two cameras and a thought."""
    vision, language = tiny_qwen()
    return QwenOFTConfig(
        vision=vision,
        language=language,
        head=MLPResNetConfig(action_dim=4, action_horizon=8),
        normalization=NormalizationConfig(
            action=("min_max",) * 4, state=(), action_units=("fraction",) * 4, state_units=()
        ),
        views=("frame", "wrist"),
        prompt=PromptConfig(text=THOUGHT),
        license="Apache-2.0",
    )


def qwen3() -> QwenOFTConfig:
    """`bridge` on Qwen3-VL-4B."""
    vision, language = qwen3_vl_4b()
    return dataclasses.replace(
        bridge(),
        vision=vision,
        language=language,
        prompt=own_chat(language, THOUGHT),
        license="Apache-2.0 (Qwen3-VL-4B); see the checkpoint's own card",
    )


def tiny3() -> QwenOFTConfig:
    """`tiny` on the other backbone."""
    vision, language = tiny_qwen3()
    prompt = own_chat(language, THOUGHT)
    return dataclasses.replace(tiny(), vision=vision, language=language, prompt=prompt)


CONFIGS = {"bridge": bridge, "qwen3": qwen3, "thin": thin, "tiny": tiny, "tiny3": tiny3}
