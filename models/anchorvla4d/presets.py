"""Named configurations: each a function that returns a complete one."""

from __future__ import annotations

import dataclasses

from models.anchorvla4d.config import AnchorVLA4DConfig, PromptConfig
from models.networks.config import LanguageConfig, ScaleDPConfig, SpatialConfig, VisionConfig
from models.networks.published import qwen2_5_vl_3b
from models.networks.readout_config import ReadoutConfig
from models.policy_config import NormalizationConfig


def full() -> AnchorVLA4DConfig:
    """The published simulation configuration, 4.406 B parameters."""
    vision, language = qwen2_5_vl_3b()
    return AnchorVLA4DConfig(
        vision=vision,
        language=language,
        spatial=SpatialConfig(depth=24, dim=768, num_heads=12, indices=(11, 17)),
        head=ScaleDPConfig(
            depth=24,
            n_emb=1024,
            num_heads=16,
            action_dim=7,
            prediction_horizon=5,
            state_dim=7,
            state_embed_dim=7,
        ),
        normalization=NormalizationConfig(
            action=("q99",) * 6 + ("binary",),
            state=("q99",) * 7,
            action_units=("m/step",) * 3 + ("rad/step",) * 3 + ("fraction",),
            state_units=("m",) * 3 + ("rad",) * 3 + ("fraction",),
        ),
        license="qwen-research (Qwen2.5-VL-3B); see the checkpoint's own card",
    )


def xlerobot() -> AnchorVLA4DConfig:
    """The published two-armed configuration: chunks of 50 actions of 12 joints."""
    base = full()
    return dataclasses.replace(
        base,
        head=dataclasses.replace(
            base.head, action_dim=12, prediction_horizon=50, state_dim=12, state_embed_dim=12
        ),
        normalization=NormalizationConfig(
            action=("q99",) * 12,
            state=("q99",) * 12,
            action_units=("rad",) * 12,
            state_units=("rad",) * 12,
        ),
    )


def proxy() -> AnchorVLA4DConfig:
    """The published widths with a sixth of the layers, so that per-layer costs are the real ones.

    A small vocabulary stands for the real one: the table is looked up on the host, a hundred rows
    at a time, and its size plays no part in a tick.
    """
    return shallow(full(), vision=5, language=6, spatial=4, head=4)


def thin() -> AnchorVLA4DConfig:
    """The published widths with two layers a network: whatever depends on width, in little time."""
    return shallow(full(), vision=2, language=2, spatial=2, head=2)


def least() -> AnchorVLA4DConfig:
    """The published widths with as few layers as a network of each kind has."""
    return shallow(full(), vision=1, language=1, spatial=2, head=1)


def shallow(
    base: AnchorVLA4DConfig, *, vision: int, language: int, spatial: int, head: int
) -> AnchorVLA4DConfig:
    """`base` with fewer layers and a small vocabulary: full widths at a fraction of the weights.

    The last vision block attends over the whole image, as in the original.
    """
    return dataclasses.replace(
        base,
        vision=dataclasses.replace(base.vision, depth=vision, fullatt_block_indexes=(vision - 1,)),
        language=dataclasses.replace(
            base.language, num_hidden_layers=language, vocab_size=demo().language.vocab_size
        ),
        spatial=dataclasses.replace(
            base.spatial, depth=spatial, indices=(spatial // 2 - 1, spatial - 1)
        ),
        head=dataclasses.replace(base.head, depth=head),
        prompt=demo().prompt,
        license="none (random weights)",
    )


def demo() -> AnchorVLA4DConfig:
    """The same family a thousand times smaller, for 112 x 112 images and a 4-DoF gripper.

    Its rotary base is 10: with 1e6 a 4 x 4 token grid would leave the width section of M-RoPE no
    resolution.
    """
    return AnchorVLA4DConfig(
        vision=VisionConfig(
            depth=3,
            hidden_size=128,
            intermediate_size=336,
            num_heads=4,
            out_hidden_size=128,
            fullatt_block_indexes=(2,),
        ),
        language=LanguageConfig(
            num_hidden_layers=4,
            hidden_size=128,
            intermediate_size=512,
            num_attention_heads=4,
            num_key_value_heads=2,
            vocab_size=512,
            rope_theta=10.0,
            mrope_section=(4, 6, 6),
        ),
        spatial=SpatialConfig(depth=6, dim=96, num_heads=4, indices=(1, 3)),
        head=ScaleDPConfig(
            depth=4,
            n_emb=128,
            num_heads=4,
            action_dim=4,
            prediction_horizon=10,
            state_dim=4,
            state_embed_dim=4,
            combine_dim=256,
        ),
        normalization=NormalizationConfig(
            action=("min_max",) * 4,
            state=("min_max",) * 4,
            action_units=("fraction",) * 4,
            state_units=("m",) * 3 + ("fraction",),
        ),
        prompt=PromptConfig(placeholder_token_id=511),
        license="Apache-2.0",
    )


def three_anchors() -> AnchorVLA4DConfig:
    """`demo` with three anchors before the frame."""
    return dataclasses.replace(demo(), anchors=3)


def readouts() -> AnchorVLA4DConfig:
    """`demo` with a leaf of each kind that readouts can be of."""
    return dataclasses.replace(
        demo(),
        readouts=(
            ReadoutConfig(name="goal", elements=("x", "y", "z"), unit="cm"),
            ReadoutConfig(name="brightness", elements=("mean",), unit="fraction", reads="frame"),
        ),
    )


CONFIGS = {
    "full": full,
    "xlerobot": xlerobot,
    "proxy": proxy,
    "thin": thin,
    "least": least,
    "demo": demo,
    "three-anchors": three_anchors,
    "readouts": readouts,
}
