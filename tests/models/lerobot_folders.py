"""Folders of SmolVLA as LeRobot writes them, with random weights of a small policy."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from models.demo import CHECKPOINT
from models.layouts import lerobot
from models.random_weights import random_tensors
from models.smolvla.config import SmolVLAConfig
from models.smolvla.model import SmolVLA

NAME = "somebody/SmolVLM2-tiny"
"""Of the language model."""


def settings(c: SmolVLAConfig) -> dict[str, Any]:
    """config.json, as LeRobot 0.6.1 writes all of it."""
    camera = {"type": "VISUAL", "shape": [3, 256, 256]}
    return {
        "type": "smolvla", "n_obs_steps": 1,
        "input_features": {
            "observation.state": {"type": "STATE", "shape": [c.head.state_dim]},
            **{f"observation.images.{view}": camera for view in c.views},
        },
        "output_features": {"action": {"type": "ACTION", "shape": [c.head.action_dim]}},
        "device": "cuda", "use_amp": False, "use_peft": False, "push_to_hub": True,
        "repo_id": None, "private": None, "tags": None, "license": None, "pretrained_path": None,
        "chunk_size": c.head.action_horizon, "n_action_steps": c.head.action_horizon,
        "normalization_mapping": {
            "VISUAL": "IDENTITY", "STATE": "MEAN_STD", "ACTION": "MEAN_STD",
        },
        "max_state_dim": c.head.max_state_dim, "max_action_dim": c.head.max_action_dim,
        "resize_imgs_with_padding": [c.vision.image_size] * 2, "empty_cameras": 0,
        "adapt_to_pi_aloha": False, "use_delta_joint_actions_aloha": False,
        "tokenizer_max_length": 48, "num_steps": c.head.num_inference_timesteps,
        "use_cache": True, "freeze_vision_encoder": True, "train_expert_only": True,
        "train_state_proj": True, "optimizer_lr": 1e-4, "optimizer_betas": [0.9, 0.95],
        "scheduler_warmup_steps": 1000, "vlm_model_name": NAME, "load_vlm_weights": True,
        "add_image_special_tokens": False, "attention_mode": "cross_attn", "prefix_length": 0,
        "pad_language_to": "max_length", "num_expert_layers": 0,
        "num_vlm_layers": c.language.num_hidden_layers, "self_attn_every_n_layers": 2,
        "expert_width_multiplier": 0.75, "min_period": 0.004, "max_period": 4.0,
        "rtc_config": None, "compile_model": False, "compile_mode": "max-autotune",
    }  # fmt: skip


def weights(c: SmolVLAConfig) -> dict[str, torch.Tensor]:
    """By LeRobot's names, what is never read among them."""
    with torch.device("meta"):
        model = SmolVLA(c)
    back = {ours: theirs for theirs, ours in lerobot.NAMES.items()}
    found = {}
    for name, tensor in random_tensors(model, 0):
        begin = max((begin for begin in back if name.startswith(begin)), key=len, default="")
        if name.startswith("action_head.action_"):
            begin = "action_head.action_"
        found[back[begin] + name.removeprefix(begin)] = tensor
    width, hidden, last = (
        c.language.hidden_size,
        c.language.intermediate_size,
        c.language.num_hidden_layers - 1,
    )
    q_width = c.language.num_attention_heads * c.language.head_dim
    layer = f"{lerobot.VLM}text_model.layers.{last}."
    shapes = {
        f"{layer}self_attn.q_proj": (q_width, width), f"{layer}self_attn.o_proj": (width, q_width),
        f"{layer}mlp.gate_proj": (hidden, width), f"{layer}mlp.up_proj": (hidden, width),
        f"{layer}mlp.down_proj": (width, hidden), f"{layer}post_attention_layernorm": (width,),
        f"{lerobot.VLM}text_model.norm": (width,),
        "model.vlm_with_expert.vlm.lm_head": (c.language.vocab_size, width),
    }  # fmt: skip
    return found | {f"{name}.weight": torch.zeros(shape) for name, shape in shapes.items()}


def numbers(width: int, seed: int) -> dict[str, torch.Tensor]:
    random = np.random.default_rng(seed)
    return {
        "mean": torch.from_numpy(random.standard_normal(width, np.float32)),
        "std": torch.from_numpy(random.uniform(0.5, 2, width).astype(np.float32)),
    }


def write(folder: Path, c: SmolVLAConfig) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(settings(c), indent=4))
    save_file(weights(c), folder / "model.safetensors")
    stats = {
        "observation.state": numbers(c.head.state_dim, 1),
        "action": numbers(c.head.action_dim, 2),
    }
    for name, step, number in (
        ("policy_preprocessor", "normalizer_processor", 5),
        ("policy_postprocessor", "unnormalizer_processor", 0),
    ):
        file = f"{name}_step_{number}_{step}.safetensors"
        flat = {f"{key}.{n}": t for key, of in stats.items() for n, t in of.items()}
        save_file(flat, folder / file)
        steps = [
            {"registry_name": "to_batch_processor", "config": {}},
            {"registry_name": step, "config": {"eps": 1e-8}, "state_file": file},
        ]
        (folder / f"{name}.json").write_text(json.dumps({"name": name, "steps": steps}))
    shutil.copyfile(CHECKPOINT / "tokenizer.json", folder / "tokenizer.json")
    return folder
