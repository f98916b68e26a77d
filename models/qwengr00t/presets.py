"""Named configurations: each a function that returns a complete one."""

from __future__ import annotations

import dataclasses

from models.chat import PromptConfig, own_chat
from models.networks.config import FlowDiTConfig
from models.networks.published import (
    dit_b,
    qwen2_5_vl_3b,
    qwen3_vl_4b,
    thin_qwen2_5_vl_3b,
    tiny_qwen,
    tiny_qwen3,
)
from models.policy_config import NormalizationConfig
from models.qwengr00t.config import QwenGR00TConfig

THOUGHT = (
    "Your task is {instruction}. To identify the key objects for your task. Locate their bounding "
    "boxes in [x1,y1,x2,y2] format."
)
"""What starVLA's published runs put around the instruction."""


def bridge() -> QwenGR00TConfig:
    """As published for the WidowX of Bridge: one camera, chunks of 16, no state."""
    vision, language = qwen2_5_vl_3b()
    return QwenGR00TConfig(
        vision=vision,
        language=language,
        head=dit_b(action_dim=7, action_horizon=16, state_dim=7),
        normalization=NormalizationConfig(
            action=("q99_clipped",) * 6 + ("binary",),
            state=(),
            action_units=("m/step",) * 3 + ("rad/step",) * 3 + ("fraction",),
            state_units=(),
        ),
        prompt=PromptConfig(text=THOUGHT),
        license="qwen-research (Qwen2.5-VL-3B); see the checkpoint's own card",
    )


def thin() -> QwenGR00TConfig:
    """The published widths with few layers and a small vocabulary; two cameras and a state."""
    base, (vision, language) = bridge(), thin_qwen2_5_vl_3b()
    return dataclasses.replace(
        base,
        vision=vision,
        language=language,
        head=dataclasses.replace(base.head, num_layers=4),
        normalization=dataclasses.replace(
            base.normalization,
            state=("q99_clipped",) * 7,
            state_units=("m",) * 3 + ("rad",) * 3 + ("fraction",),
        ),
        views=("frame", "wrist"),
        takes_state=True,
        license="none (random weights)",
    )


def tiny() -> QwenGR00TConfig:
    """Every structure of it at widths of 128, for 112 x 112 images: windowed and full
    attention, both kinds of head blocks, two cameras, a state and a thought."""
    vision, language = tiny_qwen()
    return QwenGR00TConfig(
        vision=vision,
        language=language,
        head=FlowDiTConfig(
            num_layers=4,
            num_heads=4,
            head_dim=32,
            action_dim=4,
            action_horizon=8,
            state_dim=4,
            hidden_size=64,
            output_dim=96,
            num_future_tokens=3,
            max_seq_len=32,
        ),
        normalization=NormalizationConfig(
            action=("min_max",) * 4,
            state=("min_max",) * 4,
            action_units=("fraction",) * 4,
            state_units=("m",) * 3 + ("fraction",),
        ),
        views=("frame", "wrist"),
        takes_state=True,
        prompt=PromptConfig(text=THOUGHT),
        license="Apache-2.0",
    )


def qwen3() -> QwenGR00TConfig:
    """`bridge` on Qwen3-VL-4B."""
    vision, language = qwen3_vl_4b()
    return dataclasses.replace(
        bridge(),
        vision=vision,
        language=language,
        prompt=own_chat(language, THOUGHT),
        license="Apache-2.0 (Qwen3-VL-4B); see the checkpoint's own card",
    )


def tiny3() -> QwenGR00TConfig:
    """`tiny` on the other backbone."""
    vision, language = tiny_qwen3()
    prompt = own_chat(language, THOUGHT)
    return dataclasses.replace(tiny(), vision=vision, language=language, prompt=prompt)


CONFIGS = {"bridge": bridge, "qwen3": qwen3, "thin": thin, "tiny": tiny, "tiny3": tiny3}
