"""A run of starVLA whose framework is QwenGR00T, as a configuration of ours.

In: what `models.layouts.starvla` found out. Out: a `QwenGR00TConfig`. Tensors say of which sizes
the head is, and whether its odd blocks attend to the rows themselves. Settings say what no tensor
shows, and are compared where both say something.

Source: starVLA at snapshot 0ed0aad, modules/action_model/GR00T_ActionHeader.py and
flow_matching_head/cross_attention_dit.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from models.chat import own_chat
from models.layouts.starvla import Facts, normalization
from models.layouts.starvla_config import whole
from models.layouts.tensors import count, sizes
from models.networks.config import FlowDiTConfig
from models.qwengr00t.config import QwenGR00TConfig

WHERE = "framework.action_model."
HEADS: Mapping[str, tuple[int, int]] = {"DiT-B": (12, 64), "DiT-L": (32, 48)}
"""`action_model_type` -> heads and the width of each."""
HONOURED: Mapping[str, tuple[Any, ...]] = {
    "norm_type": ("ada_norm",),
    "activation_fn": ("gelu-approximate",),
    "attention_bias": (True,),
    "norm_elementwise_affine": (False,),
    "norm_eps": (1e-5, "1e-5", "1e-05"),
    "positional_embeddings": (None,),
}
"""Settings of `diffusion_model_cfg` that no tensor shows, and what they must be where stated."""
BLOCK, ODD = "action_head.model.transformer_blocks.", "1.attn1.to_k"

UNUSED: Mapping[str, str] = {}


def policy(facts: Facts) -> QwenGR00TConfig:
    """
    Raises:
        ValueError: tensors or settings that do not fit together, or are not honoured.
    """
    head = _head(facts)
    normalized, views, takes_state = normalization(facts, head.action_dim, head.state_dim)
    return QwenGR00TConfig(
        vision=facts.vision,
        language=facts.language,
        head=head,
        normalization=normalized,
        views=views,
        takes_state=takes_state,
        prompt=own_chat(facts.language, facts.run.text),
        license=facts.license,
        description=facts.description,
    )


def _head(facts: Facts) -> FlowDiTConfig:
    shapes, stated = facts.shapes, facts.run.action_model
    dit = stated.get("diffusion_model_cfg") or {}
    if not isinstance(dit, dict):
        raise ValueError(f"{WHERE}diffusion_model_cfg must hold settings by name, got {dit!r}")
    for name, accepted in HONOURED.items():
        if name in dit and dit[name] not in accepted:
            raise ValueError(
                f"{WHERE}diffusion_model_cfg.{name}={dit[name]!r} is not honoured, only "
                f"{accepted[0]!r}"
            )
    num_layers = count(shapes, BLOCK)
    num_heads, head_dim = _heads(stated, dit)
    width, action_dim = sizes(shapes, "action_head.action_encoder.layer1.weight", 2)
    if num_heads * head_dim != width:
        raise ValueError(
            f"{WHERE}action_model_type={stated.get('action_model_type')!r} has "
            f"{num_heads} heads of {head_dim}, the weights a width of {width}; state "
            "num_attention_heads and attention_head_dim in diffusion_model_cfg"
        )
    hidden, output_dim = sizes(shapes, "action_head.action_decoder.layer1.weight", 2)
    encoder = shapes.get("action_head.state_encoder.layer1.weight")
    future = sizes(shapes, "action_head.future_tokens.weight", 2)[0]
    positions = shapes.get("action_head.position_embedding.weight")
    shown = {
        "action_dim": action_dim, "hidden_size": hidden, "num_target_vision_tokens": future,
        "state_dim": encoder[-1] if encoder else 0,
        **({"max_seq_len": positions[0]} if positions else {}),
    }  # fmt: skip
    _compare(stated, shown, WHERE)
    _compare(
        dit, {"num_layers": num_layers, "output_dim": output_dim}, f"{WHERE}diffusion_model_cfg."
    )
    return FlowDiTConfig(
        num_layers=num_layers,
        num_heads=num_heads,
        head_dim=head_dim,
        action_dim=action_dim,
        action_horizon=stated["action_horizon"],
        state_dim=encoder[-1] if encoder else None,
        interleave_self_attention=_interleaved(facts, dit, width, num_layers),
        hidden_size=hidden,
        output_dim=output_dim,
        num_future_tokens=future,
        add_pos_embed=positions is not None,
        max_seq_len=positions[0] if positions else 1024,
        num_inference_timesteps=_or(whole(stated, "num_inference_timesteps", WHERE), 4),
        num_timestep_buckets=_or(whole(stated, "num_timestep_buckets", WHERE), 1000),
    )


def _heads(stated: Mapping[str, Any], dit: Mapping[str, Any]) -> tuple[int, int]:
    kind = stated.get("action_model_type", "DiT-B")
    where = f"{WHERE}diffusion_model_cfg."
    heads = whole(dit, "num_attention_heads", where)
    head_dim = whole(dit, "attention_head_dim", where)
    if heads is None or head_dim is None:
        if kind not in HEADS:
            raise ValueError(
                f"{WHERE}action_model_type must be one of {', '.join(HEADS)}, got {kind!r}"
            )
        heads, head_dim = _or(heads, HEADS[kind][0]), _or(head_dim, HEADS[kind][1])
    return heads, head_dim


def _interleaved(facts: Facts, dit: Mapping[str, Any], width: int, num_layers: int) -> bool:
    """Whether the odd blocks attend to the rows themselves. Older runs attend to the language model
    everywhere, whatever their settings say: the width of what a block attends to tells."""
    stated = dit.get("use_canonical_forward")
    if stated is None:
        stated = dit.get("interleave_self_attention", True)
    if not isinstance(stated, bool):
        raise ValueError(
            f"{WHERE}diffusion_model_cfg.interleave_self_attention={stated!r} is no bool"
        )
    context = facts.language.hidden_size
    if num_layers < 2 or context == width:
        return stated
    columns = sizes(facts.shapes, f"{BLOCK}{ODD}.weight", 2)[1]
    if columns not in (width, context):
        raise ValueError(
            f"{BLOCK}{ODD} reads {columns} columns, neither the {width} of the head's rows nor the "
            f"{context} of the language model"
        )
    shown = columns == width
    if shown != stated:
        facts.notes.append(
            f"interleave_self_attention={str(stated).lower()} in the settings, and the weights say "
            f"{str(shown).lower()}: they are believed"
        )
    return shown


def _compare(stated: Mapping[str, Any], shown: Mapping[str, int], where: str) -> None:
    for name, value in shown.items():
        said = whole(stated, name, where)
        if said is not None and said != value:
            raise ValueError(f"{where}{name}={said}, and the weights say {value}")


def _or(value: int | None, otherwise: int) -> int:
    return otherwise if value is None else value
