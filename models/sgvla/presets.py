"""Named configurations: each a function that returns a complete one."""

from __future__ import annotations

import dataclasses

from models.networks.flow_expert_config import FlowExpertConfig
from models.networks.published import dinosiglip_224, qwen2_5_0_5b, thin_prismatic, tiny_prismatic
from models.networks.token_head_config import TokenHeadConfig
from models.policy_config import NormalizationConfig
from models.sgvla.config import LeavesConfig, SGVLAConfig


def fetch() -> SGVLAConfig:
    """As the authors describe it, for a Fetch: 7 arm joints, head pan and tilt, torso lift,
    gripper, base forward and yaw."""
    language = qwen2_5_0_5b()
    return SGVLAConfig(
        vision=dinosiglip_224(language.hidden_size),
        language=language,
        head=FlowExpertConfig(
            num_hidden_layers=language.num_hidden_layers,
            hidden_size=512,
            intermediate_size=2048,
            num_attention_heads=14,
            num_key_value_heads=2,
            head_dim=64,
            action_dim=13,
            action_horizon=8,
        ),
        normalization=NormalizationConfig(
            action=("q99",) * 13,
            state=(),
            action_units=(
                *("rad/step",) * 9, "m/step", "fraction", "m/step", "rad/step",
            ),
            state_units=(),
        ),
        license="none (no weights are published)",
    )  # fmt: skip


def thin() -> SGVLAConfig:
    """The published widths with few layers and a small vocabulary."""
    base = fetch()
    assert isinstance(base.head, FlowExpertConfig)
    vision, language = thin_prismatic()
    return dataclasses.replace(
        base,
        vision=vision,
        language=language,
        head=dataclasses.replace(base.head, num_hidden_layers=3, num_inference_timesteps=3),
        license="none (random weights)",
    )


def tiny() -> SGVLAConfig:
    """Every structure of it at widths of 32 to 128, for pictures of 56 x 56: two cameras with
    depth."""
    vision, language = tiny_prismatic()
    return SGVLAConfig(
        vision=vision,
        language=language,
        head=FlowExpertConfig(
            num_hidden_layers=3,
            hidden_size=64,
            intermediate_size=96,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=32,
            action_dim=5,
            action_horizon=4,
            num_inference_timesteps=4,
        ),
        normalization=NormalizationConfig(
            action=("q99",) * 5,
            state=(),
            action_units=("rad/step",) * 4 + ("fraction",),
            state_units=(),
        ),
        leaves=LeavesConfig(
            hidden_size=32,
            num_joints=3,
            joint_names=("shoulder", "", "wrist"),
            joint_hidden_size=32,
            joint_intermediate_size=48,
            mask_widths=(24, 16),
        ),
        license="Apache-2.0",
    )


def fetch_tokens() -> SGVLAConfig:
    """The same as `fetch` with its other head: one action a tick, 13 tokens."""
    base = fetch()
    return dataclasses.replace(base, head=TokenHeadConfig(action_dim=base.head.action_dim))


def tiny_tokens() -> SGVLAConfig:
    """The same as `tiny` with its other head: chunks of two actions."""
    base = tiny()
    head = TokenHeadConfig(action_dim=base.head.action_dim, action_horizon=2)
    return dataclasses.replace(base, head=head)


CONFIGS = {
    "fetch": fetch, "fetch-tokens": fetch_tokens, "thin": thin, "tiny": tiny,
    "tiny-tokens": tiny_tokens,
}  # fmt: skip
