"""Named configurations: each a function that returns a complete one."""

from __future__ import annotations

import dataclasses

from models.chat import PromptConfig
from models.eventvla.config import EventVLAConfig
from models.networks.config import MLPResNetConfig
from models.networks.published import qwen3_vl_4b, tiny_qwen, tiny_qwen3
from models.policy_config import NormalizationConfig
from runtime.functions.keyframes import EventSettings


def robotwin() -> EventVLAConfig:
    """As published for RoboTwin-Mem: three cameras, two arms, chunks of 50, Qwen3-VL-4B."""
    vision, language = qwen3_vl_4b()
    return EventVLAConfig(
        vision=vision,
        language=language,
        head=MLPResNetConfig(action_dim=14, action_horizon=50),
        normalization=NormalizationConfig(
            action=("min_max_or_zero",) * 12 + ("identity",) * 2,
            state=(),
            action_units=("rad",) * 12 + ("fraction",) * 2,
            state_units=(),
        ),
        views=("cam_high", "cam_left_wrist", "cam_right_wrist"),
        main_view="cam_high",
        license="MIT (EventVLA); Apache-2.0 (Qwen3-VL-4B); see the checkpoint's own card",
    )


def one_view() -> EventVLAConfig:
    """`robotwin` with its main camera alone."""
    return dataclasses.replace(robotwin(), views=("cam_high",))


def thin() -> EventVLAConfig:
    """`one_view` with few layers, as many to those of the other network as published, and a small
    vocabulary: the costs of a layer are the real ones."""
    base, (vision, language) = one_view(), qwen3_vl_4b()
    horizon = base.head.action_horizon
    return dataclasses.replace(
        base,
        vision=dataclasses.replace(vision, depth=2, deepstack_visual_indexes=(0,)),
        language=dataclasses.replace(language, num_hidden_layers=3, vocab_size=1024),
        # Random weights find every step about as likely as any other. So one of each chunk is
        # waited for, and no later chunk puts it off.
        events=EventSettings(threshold=0.01, nms_window=horizon, cooldown=horizon),
        license="none (random weights)",
    )


def thin_recent() -> EventVLAConfig:
    """`thin` whose keyframe head is silent, so that its prompt has no room for keyframes."""
    return dataclasses.replace(thin(), predicts_keyframes=False)


def tiny() -> EventVLAConfig:
    """Every structure of it at widths of 128, for 112 x 112 images: two cameras, two delays and
    room for two keyframes, with windows of a few steps."""
    vision, language = tiny_qwen3()
    return EventVLAConfig(
        vision=vision,
        language=language,
        head=MLPResNetConfig(action_dim=4, action_horizon=8),
        normalization=NormalizationConfig(
            action=("min_max",) * 4, state=(), action_units=("fraction",) * 4, state_units=()
        ),
        views=("frame", "wrist"),
        main_view="frame",
        delays=(3, 2),
        # Random weights find every step about 0.486 likely: some are events, and some are not.
        events=EventSettings(threshold=0.486, nms_window=2, cooldown=1, most_keyframes=2),
        license="Apache-2.0",
    )


def blink() -> EventVLAConfig:
    """Of the demo's task whose goal shows in mid-episode only: one camera, one keyframe, on the
    trunks of AnchorVLA4D's demo policy.

    The policy is asked every five steps, and a blink lasts six: whoever sees it knows that the next
    frame shows it too. Another event within ten steps would be the same blink.
    """
    vision, language = tiny_qwen()
    return EventVLAConfig(
        vision=dataclasses.replace(
            vision, depth=3, intermediate_size=336, fullatt_block_indexes=(2,), window_size=112
        ),
        language=dataclasses.replace(language, num_hidden_layers=4, intermediate_size=512),
        head=MLPResNetConfig(action_dim=4, action_horizon=5),
        normalization=NormalizationConfig(
            action=("min_max",) * 4, state=(), action_units=("fraction",) * 4, state_units=()
        ),
        views=("frame",),
        main_view="frame",
        delays=(),
        events=EventSettings(nms_window=4, cooldown=10, most_keyframes=1, num_replans=0),
        prompt=PromptConfig(),
        observation_label="",
        keyframe_label="",
        license="Apache-2.0",
    )


CONFIGS = {
    "robotwin": robotwin,
    "one-view": one_view,
    "thin": thin,
    "thin-recent": thin_recent,
    "tiny": tiny,
    "blink": blink,
}
