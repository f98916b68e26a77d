"""Named configurations: each a function that returns a complete one."""

from __future__ import annotations

import dataclasses

from models.networks.config import BridgeConfig
from models.networks.published import dinosiglip_224, qwen2_5_0_5b, thin_prismatic, tiny_prismatic
from models.policy_config import NormalizationConfig
from models.vlaadapter.config import VLAAdapterConfig


def libero() -> VLAAdapterConfig:
    """As published for LIBERO: two cameras, chunks of 8."""
    language = qwen2_5_0_5b()
    return VLAAdapterConfig(
        vision=dinosiglip_224(language.hidden_size),
        language=language,
        head=BridgeConfig(action_dim=7, action_horizon=8, state_dim=8),
        normalization=NormalizationConfig(
            action=("bounds_q99",) * 6 + ("identity",),
            state=("bounds_q99",) * 8,
            action_units=("fraction",) * 7,
            state_units=("m",) * 3 + ("rad",) * 3 + ("m",) * 2,
        ),
        license="MIT (VLA-Adapter); see the checkpoint's own card",
    )


def thin() -> VLAAdapterConfig:
    """The published widths with few layers and a small vocabulary."""
    base = libero()
    vision, language = thin_prismatic()
    return dataclasses.replace(
        base,
        vision=vision,
        language=language,
        license="none (random weights)",
    )


def tiny() -> VLAAdapterConfig:
    """Every structure of it at widths of 64 to 128, for pictures of 56 x 56: two cameras."""
    vision, language = tiny_prismatic()
    return VLAAdapterConfig(
        vision=vision,
        language=language,
        head=BridgeConfig(action_dim=4, action_horizon=4, state_dim=3, num_queries=8),
        normalization=NormalizationConfig(
            action=("bounds_q99",) * 3 + ("identity",),
            state=("bounds_q99",) * 3,
            action_units=("fraction",) * 4,
            state_units=("m",) * 3,
        ),
        license="Apache-2.0",
    )


CONFIGS = {"libero": libero, "thin": thin, "tiny": tiny}
