"""Named configurations: each a function that returns a complete one."""

from __future__ import annotations

import dataclasses

from models.networks.phi_config import PhiConfig
from models.networks.vq_config import VQConfig
from models.policy_config import NormalizationConfig, Unit
from models.upvla.config import MAPConfig, PromptConfig, UPVLAConfig, prompt_behind


def calvin() -> UPVLAConfig:
    """As published for CALVIN: the static camera, chunks of 10."""
    return UPVLAConfig(
        vision=VQConfig(out_hidden_size=2048),
        language=PhiConfig(
            num_hidden_layers=24,
            hidden_size=2048,
            intermediate_size=8192,
            num_attention_heads=32,
            vocab_size=58498,
        ),
        head=MAPConfig(action_dim=7, action_horizon=10),
        normalization=raw_actions(7),
        license="unstated (UP-VLA has no licence file); see the checkpoint's own card",
    )


def thin() -> UPVLAConfig:
    """The published widths with few layers, pictures of 64 x 64 and a small vocabulary."""
    base = calvin()
    return dataclasses.replace(
        base,
        vision=dataclasses.replace(
            base.vision,
            num_res_blocks=(1,) * 5,
            decoder_num_res_blocks=(1,) * 5,
            image_size=64,
        ),
        language=dataclasses.replace(
            base.language, num_hidden_layers=3, vocab_size=441 + base.vision.codebook_size
        ),
        prompt=_small_ids(num_rows=16 + 2 + 10),
        license="none (random weights)",
    )


def tiny() -> UPVLAConfig:
    """Every structure of it at widths of 32 to 64, for pictures of 16 x 16."""
    return UPVLAConfig(
        vision=VQConfig(
            out_hidden_size=64,
            ch=32,
            ch_mult=(1, 2),
            num_res_blocks=(2, 1),
            decoder_ch_mult=(1, 2),
            decoder_num_res_blocks=(1, 2),
            z_channels=4,
            image_size=16,
        ),
        language=PhiConfig(
            num_hidden_layers=3,
            hidden_size=64,
            intermediate_size=128,
            num_attention_heads=4,
            vocab_size=441 + 16,
            rope_theta=100.0,
        ),
        head=MAPConfig(action_dim=7, action_horizon=3),
        normalization=raw_actions(7),
        prompt=_small_ids(num_rows=64 + 2 + 3),
        license="Apache-2.0",
    )


def _small_ids(num_rows: int) -> PromptConfig:
    """Behind the 430 tokens of the demo's tokenizer."""
    return prompt_behind(430, bos=424, max_text=96, num_rows=num_rows)


def raw_actions(width: int) -> NormalizationConfig:
    """Actions as the robot takes them."""
    unit: Unit = "fraction"
    return NormalizationConfig(
        action=("identity",) * width,
        state=(),
        action_units=(unit,) * width,
        state_units=(),
    )


CONFIGS = {"calvin": calvin, "thin": thin, "tiny": tiny}
