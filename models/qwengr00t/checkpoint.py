"""Checkpoints of QwenGR00T: run folders of starVLA, and folders of our own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from models.layouts.starvla_writer import WRITTEN as written
from models.layouts.starvla_writer import Described, check_starvla, open_own, write_run
from models.layouts.writers import Say
from models.qwengr00t.config import QwenGR00TConfig
from models.qwengr00t.run import HEADS
from models.sources import Weights
from models.verbs import Synthesize

__all__ = ["check_writable", "open_weights", "write", "written"]


open_weights, check_writable = open_own, check_starvla


def write(
    folder: Path,
    weights: Weights,
    config: QwenGR00TConfig,
    arguments: Synthesize,
    mark: str,
    say: Say,
) -> None:
    """A run folder as training leaves one; `say` the file of weights.

    Args:
        mark: to tell whose it is.
    """
    described = Described(
        framework="QwenGR00T",
        action_model=action_model(config),
        views=config.views,
        takes_state=config.takes_state,
        text=config.prompt.text,
    )
    write_run(folder, weights, config, described, arguments, mark, say)


def action_model(config: QwenGR00TConfig) -> dict[str, Any]:
    """`framework.action_model` of a run's settings."""
    head = config.head
    named = {sizes: name for name, sizes in HEADS.items()}
    kind = named.get((head.num_heads, head.head_dim))
    dit = {
        "interleave_self_attention": head.interleave_self_attention,
        "norm_type": "ada_norm",
        "num_layers": head.num_layers,
        "output_dim": head.output_dim,
        "positional_embeddings": None,
    }
    if kind is None:
        dit |= {"num_attention_heads": head.num_heads, "attention_head_dim": head.head_dim}
    return {
        "action_model_type": kind or "DiT-B",
        "hidden_size": head.hidden_size,
        "add_pos_embed": head.add_pos_embed,
        "max_seq_len": head.max_seq_len,
        "action_dim": head.action_dim,
        "state_dim": head.state_dim or 0,
        "action_horizon": head.action_horizon,
        "num_timestep_buckets": head.num_timestep_buckets,
        "num_inference_timesteps": head.num_inference_timesteps,
        "num_target_vision_tokens": head.num_future_tokens,
        "diffusion_model_cfg": dit,
    }
