"""Named configurations: each a function that returns a complete one."""

from __future__ import annotations

import dataclasses

from models.networks.config import LlamaConfig
from models.networks.expert_config import ActionExpertConfig
from models.networks.published import smolvlm2_500m
from models.networks.siglip_config import SiglipVisionConfig
from models.policy_config import NormalizationConfig
from models.smolvla.config import SmolVLAConfig

NUM_LAYERS = 16
"""Of the language model that are used."""


def base() -> SmolVLAConfig:
    """As LeRobot publishes it for an SO-100: two cameras, six joints, chunks of 50."""
    vision, language = smolvlm2_500m()
    return SmolVLAConfig(
        vision=vision,
        language=dataclasses.replace(language, num_hidden_layers=NUM_LAYERS),
        head=ActionExpertConfig(
            hidden_size=720,
            intermediate_size=2048,
            action_dim=6,
            action_horizon=50,
            state_dim=6,
        ),
        normalization=NormalizationConfig(
            action=("mean_std",) * 6,
            state=("mean_std",) * 6,
            action_units=("fraction",) * 6,
            state_units=("fraction",) * 6,
        ),
        license="Apache-2.0 (SmolVLM2-500M); see the checkpoint's own card",
    )


def thin() -> SmolVLAConfig:
    """The published widths with few layers, a small vocabulary and two steps."""
    whole = base()
    return dataclasses.replace(
        whole,
        vision=dataclasses.replace(whole.vision, depth=2),
        language=dataclasses.replace(whole.language, num_hidden_layers=3, vocab_size=512),
        head=dataclasses.replace(whole.head, num_inference_timesteps=2),
        license="none (random weights)",
    )


def tiny() -> SmolVLAConfig:
    """Every structure of it at widths of 64 to 96, for pictures of 64 x 64: two cameras."""
    return SmolVLAConfig(
        vision=SiglipVisionConfig(
            depth=2,
            hidden_size=64,
            intermediate_size=128,
            num_heads=4,
            out_hidden_size=96,
            image_size=64,
            scale_factor=2,
        ),
        language=LlamaConfig(
            num_hidden_layers=4,
            hidden_size=96,
            intermediate_size=160,
            num_attention_heads=3,
            num_key_value_heads=1,
            vocab_size=512,
            rope_theta=10000.0,
            mrope_section=(16, 0, 0),
            rms_norm_eps=1e-5,
        ),
        head=ActionExpertConfig(
            hidden_size=72,
            intermediate_size=256,
            action_dim=4,
            action_horizon=6,
            state_dim=3,
            max_action_dim=8,
            max_state_dim=5,
            num_inference_timesteps=4,
        ),
        normalization=NormalizationConfig(
            action=("mean_std",) * 4,
            state=("mean_std",) * 3,
            action_units=("fraction",) * 4,
            state_units=("m",) * 3,
        ),
        license="Apache-2.0",
    )


CONFIGS = {"base": base, "thin": thin, "tiny": tiny}
