"""The engines of SmolVLA: small modules of fixed shapes, and their ports.

A trunk in several parts has one engine for each, numbered. Rows of pictures and text see each
other, so that they pass through the language model in one call. The state's row sees them and is
not seen: an engine of its own, which is all of the language model that a new state redoes. The
trade-off: the language model's weights are there twice, and a state's tick is short.
"""

from __future__ import annotations

import torch
from torch import Tensor as Array
from torch import nn

from models.networks.engines import COEFFICIENT_ROW, EngineSpec
from models.networks.expert import ActionExpert, TextModel, behind, read
from models.networks.flow_dit import euler_step
from models.networks.parts import WHOLE, LayersPerPart, cut
from models.networks.siglip import Connector, SiglipTower, run_layers
from models.smolvla.config import SmolVLAConfig
from models.smolvla.model import SmolVLA
from runtime.declarations import Tensor
from runtime.graph import part_name


class VisionPart(nn.Module):
    """Some layers of the tower, or all: the first with what embeds patches, the last with what
    makes tokens."""

    def __init__(self, model: SmolVLA, layers: range) -> None:
        super().__init__()
        tower: SiglipTower = model.vlm.visual
        self.embeddings = tower.embeddings if layers.start == 0 else None
        self.layers = nn.ModuleDict({str(index): tower.layers[index] for index in layers})
        self.post_layernorm: nn.Module | None = None
        self.connector: Connector | None = None
        self.scale = model.vlm.model.scale
        if layers.stop == len(tower.layers):
            self.post_layernorm, self.connector = tower.post_layernorm, model.vlm.connector

    def forward(self, x: Array) -> Array:
        if self.embeddings is not None:
            x = self.embeddings(x)
        x = run_layers(self.layers.values(), x)
        if self.post_layernorm is None or self.connector is None:
            return x
        return self.connector(self.post_layernorm(x)) * self.scale


class LanguagePart(nn.Module):
    """Some layers of the language model, or all, for rows of pictures and text: keys and values,
    and what goes on."""

    def __init__(self, text: TextModel, layers: range) -> None:
        super().__init__()
        self.layers = nn.ModuleDict({str(index): text.layers[index] for index in layers})
        self.is_last = layers.stop == len(text.layers)

    def forward(self, x: Array, mask: Array, cos: Array, sin: Array) -> tuple[Array, ...]:
        kv, x = read(self.layers.values(), x, None, mask[None], (cos, sin))
        return (kv,) if self.is_last else (kv, x)


class LastPart(nn.Module):
    """The last layer in an engine of its own: it attends to nothing."""

    def __init__(self, text: TextModel) -> None:
        super().__init__()
        index = len(text.layers) - 1
        self.layers = nn.ModuleDict({str(index): text.layers[index]})

    def forward(self, x: Array, cos: Array, sin: Array) -> Array:
        made: Array = torch.stack([layer(x, (cos, sin)) for layer in self.layers.values()])
        return made


class CrossKVEngine(nn.Module):
    """Keys and values of pictures and text, as the layers of the expert have them that attend to
    nothing else."""

    def __init__(self, expert: ActionExpert) -> None:
        super().__init__()
        self.action_head = expert

    def forward(self, kv: Array) -> Array:
        return self.action_head.given(kv)


class StateEngine(nn.Module):
    """The state's row behind pictures and text: its keys and values, as the expert has them."""

    def __init__(self, model: SmolVLA) -> None:
        super().__init__()
        self.text, self.state_proj = model.vlm.model, model.state_proj
        self.action_head = model.action_head

    def forward(self, state: Array, past: Array, mask: Array, cos: Array, sin: Array) -> Array:
        row = self.state_proj(state.unsqueeze(-2))
        seen = torch.cat([mask, torch.zeros(1)])[None]
        kv, _ = read(self.text.layers, row, past, seen, (cos, sin))
        rows = list(kv.unbind(0))
        for index, layer in self.action_head.cross_layers():
            rows[index] = layer.given(rows[index])
        return torch.stack(rows)


class EulerEngine(nn.Module):
    """One step of the sampler, its arithmetic and inpainting included.

    Of `action_time_mlp_in` it has the half that multiplies the action, as a matrix of its own: a
    compiler would slice the whole one in every step.
    """

    def __init__(self, expert: ActionExpert) -> None:
        super().__init__()
        self.action_head = expert
        self.register_buffer("own", expert.own.detach().contiguous())
        self.own: Array

    def forward(
        self,
        x: Array,
        past: Array,
        cross: Array,
        state_row: Array,
        mask: Array,
        cos: Array,
        sin: Array,
        step: Array,
        coefficients: Array,
        leftover: Array,
        weights: Array,
    ) -> Array:
        expert = self.action_head
        crossed = iter(cross)
        given = [
            behind(next(crossed) if expert.config.is_cross(index) else past[index], row)
            for index, row in enumerate(state_row)
        ]
        seen = torch.cat([mask, torch.zeros(1)])
        rows = expert.embed(x, step, self.own)
        velocity = expert.velocity(rows, given, seen, (cos, sin))
        return euler_step(x, -velocity, coefficients, leftover, weights)


def engines_of(
    model: SmolVLA, slots: int, layers: LayersPerPart = WHOLE, samples: int = 1
) -> dict[str, EngineSpec]:
    """All engines by name.

    Args:
        slots: rows of pictures and text, with room for the longest.
        samples: chunks that are sampled at once. Of more than one, K, `x` is [K, T, A].
    """
    c = model.config
    head, text = c.head, c.language
    padded = (head.action_horizon, head.max_action_dim)
    x = Tensor(shape=padded if samples == 1 else (samples, *padded))
    kv = kv_shape(c, slots)
    mask = Tensor(shape=(slots,))
    cross = Tensor(shape=(len(model.action_head.cross_layers()), *kv.shape[1:]))
    row = kv_shape(c, 1)
    found = _vision(model, layers.get("vision")) | _language(model, slots, layers.get("language"))
    found["cross_kv"] = EngineSpec(
        CrossKVEngine(model.action_head), {"kv": kv}, {"keys_values": cross}
    )
    found["state"] = EngineSpec(
        StateEngine(model),
        {
            "state": Tensor(shape=(head.max_state_dim,)),
            "past": kv,
            "mask": mask,
            **_angles(1, text.head_dim),
        },
        {"row": row},
    )
    found["euler"] = EngineSpec(
        EulerEngine(model.action_head),
        {
            "x": x,
            "past": kv,
            "cross": cross,
            "state_row": row,
            "mask": mask,
            **_angles(head.action_horizon, text.head_dim),
            "step": Tensor(shape=(1, head.hidden_size)),
            "coefficients": Tensor(shape=(COEFFICIENT_ROW,)),
            "leftover": Tensor(shape=padded),
            "weights": Tensor(shape=(head.action_horizon, 1)),
        },
        {"x_next": x},
        ("own",),
    )
    return found


def kv_shape(c: SmolVLAConfig, rows: int) -> Tensor:
    """Keys and values of all layers of the language model."""
    text = c.language
    heads = (2, text.num_key_value_heads, rows, text.head_dim)
    return Tensor(shape=(text.num_hidden_layers, *heads))


def _vision(model: SmolVLA, per_part: int | None) -> dict[str, EngineSpec]:
    """Patches of a picture -> its tokens."""
    c = model.config.vision
    between = Tensor(shape=(c.num_patches, c.hidden_size))
    parts = cut(c.depth, per_part)
    return {
        part_name("vision", i, len(parts)): EngineSpec(
            VisionPart(model, layers),
            {"x": between} if i else {"patches": Tensor(shape=(c.num_patches, c.patch_dim))},
            {"tokens": Tensor(shape=(c.num_tokens, c.out_hidden_size))}
            if layers is parts[-1]
            else {"x_next": between},
        )
        for i, layers in enumerate(parts)
    }


def _language(model: SmolVLA, slots: int, per_part: int | None) -> dict[str, EngineSpec]:
    """Embeddings -> their keys and values."""
    c = model.config.language
    rows = Tensor(shape=(slots, c.hidden_size))
    text, depth = model.vlm.model, c.num_hidden_layers
    parts = cut(depth, per_part)
    found = {}
    for i, layers in enumerate(parts):
        is_alone = layers == range(depth - 1, depth)
        shape = (len(layers), *kv_shape(model.config, slots).shape[1:])
        given = {"x" if i else "embeddings": rows}
        if not is_alone:
            given["mask"] = Tensor(shape=(slots,))
        found[part_name("language", i, len(parts))] = EngineSpec(
            LastPart(text) if is_alone else LanguagePart(text, layers),
            given | _angles(slots, c.head_dim),
            {"kv": Tensor(shape=shape)} | ({} if layers is parts[-1] else {"x_next": rows}),
        )
    return found


def _angles(rows: int, head_dim: int) -> dict[str, Tensor]:
    return {port: Tensor(shape=(rows, head_dim)) for port in ("cos", "sin")}
