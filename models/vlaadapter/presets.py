"""Named configurations: each a function that returns a complete one."""

from __future__ import annotations

import dataclasses

from models.networks.config import BridgeConfig, LanguageConfig
from models.networks.prismatic_config import PrismaticVisionConfig
from models.networks.published import dinosiglip_224, qwen2_5_0_5b
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
    return dataclasses.replace(
        base,
        vision=dataclasses.replace(
            base.vision,
            featurizer=dataclasses.replace(base.vision.featurizer, depth=3),
            fused_featurizer=dataclasses.replace(base.vision.fused_featurizer, depth=3),
        ),
        language=dataclasses.replace(base.language, num_hidden_layers=3, vocab_size=512),
        license="none (random weights)",
    )


def tiny() -> VLAAdapterConfig:
    """Every structure of it at widths of 64 to 128, for pictures of 56 x 56: two cameras."""
    published = dinosiglip_224(128)
    vision = PrismaticVisionConfig(
        featurizer=dataclasses.replace(
            published.featurizer, depth=3, hidden_size=64, intermediate_size=128, num_heads=4
        ),
        fused_featurizer=dataclasses.replace(
            published.fused_featurizer, depth=3, hidden_size=96, intermediate_size=160, num_heads=4
        ),
        out_hidden_size=128,
        image_size=56,
    )
    language = LanguageConfig(
        num_hidden_layers=3,
        hidden_size=128,
        intermediate_size=256,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=512,
        rope_theta=100.0,
        mrope_section=(16, 0, 0),
    )
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
