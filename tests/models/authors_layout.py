"""The authors' checkpoint written out by hand, apart from the importer: what it is judged by.

Every name and every order stands here in plain loops over heads, as the public tools describe them
(AnchorVLA4D's `checkpoint/vlm_model`, checked against Pai-Megatron-Patch's
`hf2mcore_qwen2.5_vl.py`, which views a fused QKV as [groups, queries + 2, head width, inputs] and
joins shards by parts of their names).
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from models.anchorvla4d.config import AnchorVLA4DConfig

State = dict[str, Tensor]


def fused(queries: Tensor, keys: Tensor, values: Tensor, heads: int, groups: int) -> Tensor:
    """Head after head: the queries of a group, its key, its value."""
    width = len(queries) // heads
    rows = []
    for group in range(groups):
        for query in range(heads // groups):
            start = (group * (heads // groups) + query) * width
            rows.append(queries[start : start + width])
        rows.append(keys[group * width : (group + 1) * width])
        rows.append(values[group * width : (group + 1) * width])
    return torch.cat(rows)


def vlm_state(policy: Mapping[str, Tensor], config: AnchorVLA4DConfig) -> State:
    """What the `vlm` of one rank alone holds, from a policy's tensors."""
    p = {name.removeprefix("vlm."): t for name, t in policy.items() if name.startswith("vlm.")}
    made: State = {}
    for index in range(config.vision.depth):
        a, b = f"visual.blocks.{index}.", f"image_encoder.encoder.blocks.layers.{index}."
        made[b + "input_layernorm.weight"] = p[a + "norm1.weight"]
        made[b + "pre_mlp_layernorm.weight"] = p[a + "norm2.weight"]
        heads = config.vision.num_heads
        for kind in ("weight", "bias"):
            third = len(p[a + f"attn.qkv.{kind}"]) // 3
            q, k, v = (p[a + f"attn.qkv.{kind}"][i * third : (i + 1) * third] for i in range(3))
            made[b + f"self_attention.linear_qkv.{kind}"] = fused(q, k, v, heads, heads)
            made[b + f"self_attention.linear_proj.{kind}"] = p[a + f"attn.proj.{kind}"]
            gate, up = p[a + f"mlp.gate_proj.{kind}"], p[a + f"mlp.up_proj.{kind}"]
            made[b + f"mlp.linear_fc1.{kind}"] = torch.cat([gate, up])
            made[b + f"mlp.linear_fc2.{kind}"] = p[a + f"mlp.down_proj.{kind}"]
    for index in range(config.language.num_hidden_layers):
        a, b = f"model.layers.{index}.", f"text_decoder.decoder.layers.{index}."
        made[b + "input_layernorm.weight"] = p[a + "input_layernorm.weight"]
        made[b + "pre_mlp_layernorm.weight"] = p[a + "post_attention_layernorm.weight"]
        made[b + "self_attention.linear_proj.weight"] = p[a + "self_attn.o_proj.weight"]
        heads, groups = config.language.num_attention_heads, config.language.num_key_value_heads
        for kind in ("weight", "bias"):
            q, k, v = (p[a + f"self_attn.{x}_proj.{kind}"] for x in "qkv")
            made[b + f"self_attention.linear_qkv.{kind}"] = fused(q, k, v, heads, groups)
        gate, up = p[a + "mlp.gate_proj.weight"], p[a + "mlp.up_proj.weight"]
        made[b + "mlp.linear_fc1.weight"] = torch.cat([gate, up])
        made[b + "mlp.linear_fc2.weight"] = p[a + "mlp.down_proj.weight"]
    encoder, projector = "image_encoder.encoder.", "image_encoder.projector."
    made[encoder + "patch_embed.proj.weight"] = p["visual.patch_embed.proj.weight"]
    made[projector + "layernorm.weight"] = p["visual.merger.ln_q.weight"]
    for kind in ("weight", "bias"):
        made[projector + f"encoder.linear_fc1.{kind}"] = p[f"visual.merger.mlp.0.{kind}"]
        made[projector + f"encoder.linear_fc2.{kind}"] = p[f"visual.merger.mlp.2.{kind}"]
    made["text_decoder.embedding.word_embeddings.weight"] = p["model.embed_tokens.weight"]
    made["text_decoder.decoder.final_layernorm.weight"] = p["model.norm.weight"]
    return made


def share(name: str, tensor: Tensor, rank: int, ranks: int) -> Tensor:
    """What one rank holds of a tensor of `vlm_state`."""
    if "norm" in name or "patch_embed" in name:
        return tensor
    if name.endswith(("linear_proj.weight", "linear_fc2.weight")):
        return torch.stack(tensor.split(tensor.shape[1] // ranks, dim=1))[rank]
    if name.endswith(("linear_proj.bias", "linear_fc2.bias")):
        return tensor
    if "linear_fc1" in name and "projector" not in name:
        half = tensor.reshape(2, ranks, -1, *tensor.shape[1:])[:, rank]
        return half.reshape(-1, *tensor.shape[1:])
    return tensor.reshape(ranks, -1, *tensor.shape[1:])[rank]


def rank_state(
    policy: Mapping[str, Tensor], config: AnchorVLA4DConfig, rank: int = 0, ranks: int = 1
) -> dict[str, State]:
    """The `model` in one rank's file."""
    whole = vlm_state(policy, config)
    parts: dict[str, State] = {
        "vlm": {name: share(name, t, rank, ranks).clone() for name, t in whole.items()}
    }
    for part in ("action_head", "info_sharing"):
        parts[part] = {
            name.removeprefix(part + "."): tensor
            for name, tensor in policy.items()
            if name.startswith(part + ".")
        }
    return parts


def save(
    folder: Path, policy: Mapping[str, Tensor], config: AnchorVLA4DConfig, ranks: int = 1
) -> None:
    """As training leaves it: the tracker, an iteration's folder, a file for each rank."""
    (folder / "latest_checkpointed_iteration.txt").write_text("60000")
    for rank in range(ranks):
        place = folder / "iter_0060000" / f"mp_rank_{rank:02d}"
        place.mkdir(parents=True)
        content = {
            "args": argparse.Namespace(tensor_model_parallel_size=ranks),
            "checkpoint_version": 3.0,
            "iteration": 60000,
            "model": rank_state(policy, config, rank, ranks),
        }
        torch.save(content, place / "model_optim_rng.pt")
