"""Checkpoints of EventVLA: run folders of starVLA's kind, and folders of our own."""

from __future__ import annotations

from pathlib import Path

from models.eventvla.config import EventVLAConfig
from models.eventvla.run import MODE, OBSERVED
from models.layouts.starvla_writer import WRITTEN as written
from models.layouts.starvla_writer import Described, check_starvla, open_own, write_run
from models.layouts.writers import Say
from models.sources import Weights
from models.verbs import Synthesize

__all__ = ["check_writable", "open_weights", "write", "written"]

open_weights, check_writable = open_own, check_starvla


def write(
    folder: Path,
    weights: Weights,
    config: EventVLAConfig,
    arguments: Synthesize,
    mark: str,
    say: Say,
) -> None:
    """A run folder as training leaves one; `say` the file of weights.

    Args:
        mark: to tell whose it is.
    """
    events, horizon = config.events, config.head.action_horizon
    described = Described(
        framework="EventVLA",
        action_model={
            "action_model_type": "DiT-B",  # as published; the head is an MLP all the same
            "action_dim": config.head.action_dim,
            "action_horizon": horizon,
            "future_action_window_size": horizon - 1,
            "past_action_window_size": 0,
        },
        views=config.views,
        takes_state=False,
        text=config.prompt.text,
        framework_settings={
            "memory_ablation_mode": MODE,
            "memory_buffer": {
                "enable": False,
                "qwen_memory_injection": {
                    "enabled": True,
                    "mode": MODE,
                    "keyframe_image_position": "after_anchor_images_before_action",
                    "max_keyframe_images": events.most_keyframes,
                    "use_image_role_text": bool(config.observation_label),
                },
                "use_keyframe_predict_head": "auto",
                "event_future_min_offset": events.least_offset,
                "event_commit_threshold": events.threshold,
                "enable_keyframe_inference_event_filter": True,
                "keyframe_nms_window": events.nms_window,
                "keyframe_cooldown_steps": events.cooldown,
            },
        },
        data_settings={
            "keyframe_image_memory": {
                "enabled": True,
                "max_keyframes": events.most_keyframes,
                "include_names": [config.main_view],
                "exclude_name_patterns": ["wrist"],
            },
            "temporal": {
                "enabled": True,
                "image": {
                    "absolute_indices": [0],
                    "delta_indices": [*(-delay for delay in config.delays), 0],
                },
            },
        },
        flags={OBSERVED: config.predicts_keyframes},
    )
    write_run(folder, weights, config, described, arguments, mark, say)
