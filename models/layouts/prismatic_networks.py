"""The networks of a folder of Prismatic's kind: their sizes, and what is stored and not used.

In: shapes of the tensors, under the authors' names, and what config.json says. Out: configurations
of both towers and of the decoder. What shapes do not show (heads, rotary positions) comes from
timm's names of the towers, and from `text_config`.

Source: VLA-Adapter at snapshot 838a36d, prismatic/extern/hf/modeling_prismatic.py; timm 0.9's
vision_transformer.py for the names of blocks and of the pooling behind them.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from models.layouts import hugging_face
from models.layouts.prismatic_robots import OWN
from models.layouts.prismatic_settings import CONFIG, TEXT_ACCEPTED, TOWERS, Settings
from models.layouts.tensors import Shapes, count, sizes
from models.networks.config import LanguageConfig
from models.networks.prismatic_config import PrismaticVisionConfig, ViTConfig
from models.networks.published import qwen2_5_0_5b

NAMES = ("vision_backbone.featurizer.", "vision_backbone.fused_featurizer.")
"""How the names of each tower begin."""
HEAD, LAYERS = "action_head.model.mlp_resnet_blocks.", "language_model.model.layers."


def vision_of(
    shapes: Shapes, settings: Settings, heads: tuple[int, ...] | None
) -> PrismaticVisionConfig:
    """Both towers and the projector.

    Args:
        heads: of each tower, where they are none of timm's that a folder names.

    Raises:
        ValueError: tensors are missing or of other towers, or of another size than it is stated.
    """
    first, second = (
        _tower(shapes, begin, name, number)
        for begin, name, number in zip(NAMES, TOWERS, heads or (None, None), strict=True)
    )
    places = sizes(shapes, f"{NAMES[0]}pos_embed", 3)[1]
    patch = sizes(shapes, f"{NAMES[0]}patch_embed.proj.weight", 4)[-1]
    side = math.isqrt(places)
    if side**2 != places:
        raise ValueError(f"{NAMES[0]}pos_embed has {places} places, which are no square")
    if settings.image_sizes not in (None, [side * patch] * 2):
        raise ValueError(
            f"{settings.path}: image_sizes={settings.image_sizes!r}, and the weights have places "
            f"for pictures of {side * patch} x {side * patch}"
        )
    return PrismaticVisionConfig(
        featurizer=first,
        fused_featurizer=second,
        out_hidden_size=sizes(shapes, "projector.fc3.weight", 2)[0],
        image_size=side * patch,
        patch_size=patch,
    )


def _tower(shapes: Shapes, begin: str, name: str, heads: int | None) -> ViTConfig:
    known = TOWERS[name]
    registers = f"{begin}reg_token"
    made = dataclasses.replace(
        known,
        depth=count(shapes, f"{begin}blocks."),
        hidden_size=sizes(shapes, f"{begin}pos_embed", 3)[2],
        intermediate_size=sizes(shapes, f"{begin}blocks.0.mlp.fc1.weight", 2)[0],
        class_token=f"{begin}cls_token" in shapes,
        reg_tokens=sizes(shapes, registers, 3)[1] if registers in shapes else 0,
        layer_scale=f"{begin}blocks.0.ls1.scale_factor" in shapes,
    )
    if heads is not None:
        return dataclasses.replace(made, num_heads=heads)
    for field in dataclasses.fields(ViTConfig):
        ours, theirs = getattr(made, field.name), getattr(known, field.name)
        if ours != theirs:
            raise ValueError(
                f"the weights of {begin}* have {field.name}={ours}, and {name} {theirs}. If they "
                "are of a tower of one's own, say how many attention heads both towers have in "
                f'{OWN} beside {CONFIG}: {{"tower_heads": [16, 16]}}'
            )
    return made


def language_of(shapes: Shapes, settings: Settings, notes: list[str]) -> LanguageConfig:
    """Qwen2.5's decoder; what is neither stated nor seen is Qwen2.5-0.5B's.

    Args:
        notes: takes what is believed without being seen.

    Raises:
        ValueError: tensors are missing, or settings are, or do not fit them.
    """
    vocabulary, width = sizes(shapes, "language_model.model.embed_tokens.weight", 2)
    known, text = qwen2_5_0_5b(), settings.text
    stated = {**text, **hugging_face.rope_settings(settings.path, text, TEXT_ACCEPTED)}
    unseen = {
        name: _number(settings.path, stated, name, getattr(known, name))
        for name in ("num_attention_heads", "rope_theta", "rms_norm_eps")
    }
    if left := [name for name in unseen if name not in stated]:
        if width != known.hidden_size:
            raise ValueError(
                f"{settings.path}: text_config must state {', '.join(left)}, since the decoder's "
                f"width {width} is not that of Qwen2.5-0.5B, {known.hidden_size}"
            )
        notes.append(f"{', '.join(left)} of the decoder: not stated, Qwen2.5-0.5B's are taken")
    heads = int(unseen["num_attention_heads"])
    if width % heads:
        raise ValueError(
            f"{settings.path}: text_config.num_attention_heads={heads} must divide {width}"
        )
    layer, head_dim = f"{LAYERS}0.", width // heads
    made = LanguageConfig(
        num_hidden_layers=count(shapes, LAYERS),
        hidden_size=width,
        intermediate_size=sizes(shapes, f"{layer}mlp.gate_proj.weight", 2)[0],
        num_attention_heads=heads,
        num_key_value_heads=sizes(shapes, f"{layer}self_attn.k_proj.weight", 2)[0] // head_dim,
        vocab_size=vocabulary,
        rope_theta=float(unseen["rope_theta"]),
        mrope_section=(head_dim // 2, 0, 0),
        rms_norm_eps=float(unseen["rms_norm_eps"]),
    )
    for field in dataclasses.fields(made):
        ours = getattr(made, field.name)
        if stated.get(field.name, ours) != ours:
            raise ValueError(
                f"{settings.path}: text_config.{field.name}={stated[field.name]!r}, and the "
                f"weights say {ours}"
            )
    return made


def _number(path: Path, stated: Mapping[str, Any], name: str, default: float) -> float:
    value = stated.get(name, default)
    kinds = (int,) if isinstance(default, int) else (int, float)
    if isinstance(value, bool) or not isinstance(value, kinds) or not 0 < value < math.inf:
        raise ValueError(f"{path}: text_config.{name} must be a number above zero, got {value!r}")
    return value


def unused_tensors(
    vision: PrismaticVisionConfig, language: LanguageConfig
) -> dict[str, tuple[tuple[int, ...], str]]:
    """What is stored and never used, by name: its shape, and why."""
    made: dict[str, tuple[tuple[int, ...], str]] = {}
    for begin, tower in zip(NAMES, (vision.featurizer, vision.fused_featurizer), strict=True):
        last = f"{begin}blocks.{tower.num_blocks}."
        for name, shape in _block(tower).items():
            made[last + name] = shape, "the tower is read behind the block before it"
        for name in ("norm.weight", "norm.bias"):
            made[begin + name] = (tower.hidden_size,), "the tower is read before its norm"
        if not tower.class_token:
            for name, shape in _pool(tower).items():
                made[begin + name] = shape, "the tower is read patch by patch"
    width = language.hidden_size
    made["language_model.lm_head.weight"] = (
        (language.vocab_size, width), "speaks words, of which this policy says none",
    )  # fmt: skip
    for block in range(language.num_hidden_layers):
        for name, shape in {"weight": (2 * width, width), "bias": (2 * width,)}.items():
            made[f"{HEAD}{block}.film_gen.0.{name}"] = shape, "the authors' code skips it"
    return made


def _block(c: ViTConfig) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a block of a tower."""
    width, inner = c.hidden_size, c.intermediate_size
    linear = {"attn.qkv": (3 * width, width), "attn.proj": (width, width)}
    made = _linear(linear | {"mlp.fc1": (inner, width), "mlp.fc2": (width, inner)})
    for norm in ("norm1", "norm2"):
        made |= {f"{norm}.weight": (width,), f"{norm}.bias": (width,)}
    if c.layer_scale:
        made |= {f"{scale}.scale_factor": (width,) for scale in ("ls1", "ls2")}
    return made


def _pool(c: ViTConfig) -> dict[str, tuple[int, ...]]:
    """Names and shapes of what makes one vector of a picture."""
    width, inner = c.hidden_size, c.intermediate_size
    linear = {"q": (width, width), "kv": (2 * width, width), "proj": (width, width)}
    made = {"latent": (1, 1, width), "norm.weight": (width,), "norm.bias": (width,)}
    made |= _linear(linear | {"mlp.fc1": (inner, width), "mlp.fc2": (width, inner)})
    return {f"attn_pool.{name}": shape for name, shape in made.items()}


def _linear(layers: Mapping[str, tuple[int, int]]) -> dict[str, tuple[int, ...]]:
    made: dict[str, tuple[int, ...]] = {}
    for name, shape in layers.items():
        made |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    return made
