"""A flow-matching expert that acts on the keys and values of a language model, layer by layer.

The language model is a Llama of which nothing but keys and values is used: of its last layer no
more is there than what makes them. Rows of pictures and text see each other, a row of the state
behind them sees them all, and actions see these and the actions before them. Expert layers of one
kind attend to the language model's keys and values and their own; those of the other to the
language model's alone, turned as they are, through a projection of their own, and count their
places from 0. That projection waits for no step of the sampler (`ActionExpert.given`).

Source: LeRobot 0.6.1, its file smolvlm_with_expert.py. Parameter names are those of Llama.

Axes: R = rows of a call, C = rows that are attended to, T = action in the chunk, A = width of
padded actions, L = layer, K = key/value heads, d = head width, D = width of the language model,
W = of the expert. Keys are stored turned, [L, 2, K, C, d] with the values.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from models.networks.config import LlamaConfig
from models.networks.expert_config import ActionExpertConfig
from models.networks.flow_dit import euler_step
from models.networks.layers import RMSNorm, SwiGLU, attend, rotate
from runtime.prompt import MASKED, mrope_tables

Rotary = tuple[Tensor, Tensor]
"""Cosines and sines, [R, d]."""


class KeysValues(nn.Module):
    """What keys and values are made with."""

    def __init__(self, c: LlamaConfig, width: int) -> None:
        super().__init__()
        self.kv_heads, self.head_dim = c.num_key_value_heads, c.head_dim
        self.k_proj = nn.Linear(width, self.kv_heads * self.head_dim, bias=False)
        self.v_proj = nn.Linear(width, self.kv_heads * self.head_dim, bias=False)

    def keys_values(self, x: Tensor, rotary: Rotary) -> Tensor:
        """[..., R, width] -> [..., 2, K, R, d]."""
        keys, values = self._heads(self.k_proj(x)), self._heads(self.v_proj(x))
        return torch.stack([rotate(keys, *rotary), values], dim=-4)

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (-1, self.head_dim)).transpose(-3, -2)


class Attention(KeysValues):
    """Grouped-query attention, whose keys and values may come from elsewhere."""

    def __init__(self, c: LlamaConfig, width: int, context: int | None = None) -> None:
        """
        Args:
            width: of the rows that ask.
            context: of what keys and values are made of; that width if none is named.
        """
        super().__init__(c, context or width)
        q_width = c.num_attention_heads * c.head_dim
        self.q_proj = nn.Linear(width, q_width, bias=False)
        self.o_proj = nn.Linear(q_width, width, bias=False)

    def forward(self, x: Tensor, kv: Tensor, mask: Tensor, rotary: Rotary) -> Tensor:
        """
        Args:
            x: [..., R, width].
            kv: [..., 2, K, C, d].
            mask: [R, C], or [1, C] of all rows; added to the scores.
        """
        q = rotate(self._heads(self.q_proj(x)), *rotary)  # [..., heads, R, d]
        q = q.unflatten(-3, (self.kv_heads, -1))
        group = q.shape[-3]
        if mask.shape[-2] > 1:
            mask = mask.repeat(group, 1)
        out = attend(q.flatten(-3, -2), kv.select(-4, 0), kv.select(-4, 1), mask)
        out = out.unflatten(-2, (group, -1)).flatten(-4, -3).transpose(-3, -2)
        return self.o_proj(out.flatten(-2))


class Layer(nn.Module):
    """A layer of Llama. Its own keys and values stand behind others."""

    def __init__(self, c: LlamaConfig, width: int, hidden: int, context: int | None = None) -> None:
        super().__init__()
        self.self_attn = Attention(c, width, context)
        self.mlp = SwiGLU(width, hidden, bias=False)
        self.input_layernorm = RMSNorm(width, c.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(width, c.rms_norm_eps)

    def forward(
        self, x: Tensor, past: Tensor | None, mask: Tensor, rotary: Rotary
    ) -> tuple[Tensor, Tensor]:
        """Rows [..., R, width] behind `past` [2, K, P, d] -> the same, and their own keys and
        values."""
        normed = self.input_layernorm(x)
        kv = self.self_attn.keys_values(normed, rotary)
        return self._pass(x, normed, behind(past, kv), mask, rotary), kv

    def _pass(self, x: Tensor, normed: Tensor, kv: Tensor, mask: Tensor, rotary: Rotary) -> Tensor:
        x = x + self.self_attn(normed, kv, mask, rotary)
        return x + self.mlp(self.post_attention_layernorm(x))


class CrossLayer(Layer):
    """One that attends to the language model alone."""

    def __init__(self, c: LlamaConfig, width: int, hidden: int) -> None:
        super().__init__(c, width, hidden, c.num_key_value_heads * c.head_dim)

    def given(self, kv: Tensor) -> Tensor:
        """Keys and values of the language model [2, K, C, d] -> this layer's."""
        attention = self.self_attn
        keys, values = kv.transpose(-3, -2).flatten(-2).unbind(-3)
        made = (attention.k_proj(keys), attention.v_proj(values))
        return torch.stack([attention._heads(rows) for rows in made], dim=-4)

    def cross(self, x: Tensor, given: Tensor, mask: Tensor, rotary: Rotary) -> Tensor:
        return self._pass(x, self.input_layernorm(x), given, mask, rotary)


class LastLayer(nn.Module):
    """Of the language model: no more of it is used."""

    def __init__(self, c: LlamaConfig) -> None:
        super().__init__()
        self.self_attn = KeysValues(c, c.hidden_size)
        self.input_layernorm = RMSNorm(c.hidden_size, c.rms_norm_eps)

    def forward(self, x: Tensor, rotary: Rotary) -> Tensor:
        return self.self_attn.keys_values(self.input_layernorm(x), rotary)


class TextModel(nn.Module):
    """The language model as far as it is used, and its token table."""

    def __init__(self, c: LlamaConfig) -> None:
        super().__init__()
        self.config = c
        self.embed_tokens = nn.Embedding(c.vocab_size, c.hidden_size)
        whole = (
            Layer(c, c.hidden_size, c.intermediate_size) for _ in range(c.num_hidden_layers - 1)
        )
        self.layers = nn.ModuleList([*whole, LastLayer(c)])

    @property
    def scale(self) -> float:
        """What tokens of pictures and of text are multiplied with."""
        return math.sqrt(self.config.hidden_size)

    def token_table(self) -> Tensor:
        """[V, D], scaled."""
        return self.embed_tokens.weight * self.scale


def read(
    layers: Iterable[nn.Module], x: Tensor, past: Tensor | None, mask: Tensor, rotary: Rotary
) -> tuple[Tensor, Tensor]:
    """Some layers of the language model.

    Args:
        x: [R, D].
        past: [L, 2, K, P, d] of these layers.
        mask: [R, P + R] or [1, P + R].

    Returns:
        Keys and values of the rows, [L, 2, K, R, d], and what goes on, which nothing makes of a
        last layer.
    """
    made = []
    for index, layer in enumerate(layers):
        if isinstance(layer, LastLayer):
            made.append(layer(x, rotary))
        else:
            x, kv = layer(x, None if past is None else past[index], mask, rotary)
            made.append(kv)
    return torch.stack(made), x


def behind(past: Tensor | None, kv: Tensor) -> Tensor:
    """Keys and values behind others, which all of a batch share."""
    if past is None:
        return kv
    return torch.cat([past.expand(*kv.shape[:-4], *past.shape[-4:]), kv], dim=-2)


class ActionExpert(nn.Module):
    def __init__(self, config: ActionExpertConfig, c: LlamaConfig) -> None:
        """
        Args:
            c: of the language model.
        """
        super().__init__()
        self.config, self.language = config, c
        width, hidden = config.hidden_size, config.intermediate_size
        self.layers = nn.ModuleList(
            (CrossLayer if config.is_cross(index) else Layer)(c, width, hidden)
            for index in range(c.num_hidden_layers)
        )
        self.norm = RMSNorm(width, c.rms_norm_eps)
        self.action_in_proj = nn.Linear(config.max_action_dim, width)
        self.action_time_mlp_in = nn.Linear(2 * width, width)
        self.action_time_mlp_out = nn.Linear(width, width)
        self.action_out_proj = nn.Linear(width, config.max_action_dim)

    @property
    def own(self) -> Tensor:
        """What `action_time_mlp_in` multiplies the action by, [W, W]; the other half is that of the
        time."""
        return self.action_time_mlp_in.weight[:, : self.config.hidden_size]

    def step_table(self) -> Tensor:
        """What `action_time_mlp_in` makes of each step's time, its bias included, [steps, W]
        float32. Products are float64, so that no machine's way of adding up shows in them."""
        c, layer = self.config, self.action_time_mlp_in
        times = torch.from_numpy(times_of(c)).double()
        places = torch.linspace(0, 1, c.hidden_size // 2, dtype=torch.float64)
        periods = c.min_period * (c.max_period / c.min_period) ** places
        angles = 2 * math.pi / periods * times[:, None]
        sinusoids = torch.cat([angles.sin(), angles.cos()], dim=-1).float().double()
        weight = layer.weight[:, c.hidden_size :]
        time = functional.linear(sinusoids.to(weight.device), weight.double(), layer.bias.double())
        return time.float()

    def cross_layers(self) -> list[tuple[int, CrossLayer]]:
        """By number, those that attend to the language model alone."""
        return [(i, x) for i, x in enumerate(self.layers) if isinstance(x, CrossLayer)]

    def given(self, kv: Tensor) -> Tensor:
        """[L, 2, K, C, d] of the language model -> the same of the layers that project it, in
        order."""
        return torch.stack([layer.given(kv[index]) for index, layer in self.cross_layers()])

    def velocity(
        self, rows_TW: Tensor, given: Sequence[Tensor], mask_C: Tensor, rotary: Rotary
    ) -> Tensor:
        """Where noisy actions flow, [..., T, A].

        Args:
            rows_TW: of `embed`.
            given: of every layer what it attends to beside its own rows, [2, K, C, d].
            mask_C: added to the scores of each of them.
            rotary: of the actions behind all else.
        """
        horizon, mask_1C = rows_TW.shape[-2], mask_C[None]
        causal = torch.full((horizon, horizon), MASKED).triu(1)
        mask_TC = torch.cat([mask_1C.expand(horizon, -1), causal], dim=-1)
        from_0 = tables(horizon, self.language)
        x = rows_TW
        for layer, kv in zip(self.layers, given, strict=True):
            if isinstance(layer, CrossLayer):
                x = layer.cross(x, kv, mask_1C, from_0)
            else:
                x, _ = layer(x, kv, mask_TC, rotary)
        return self.action_out_proj(self.norm(x))

    def embed(self, x_TA: Tensor, time_W: Tensor, own: Tensor | None = None) -> Tensor:
        """Noisy actions at a time -> rows, [..., T, W].

        Args:
            time_W: a row of `step_table`.
            own: as `self.own`, where that is kept as a matrix of its own.
        """
        own = self.own if own is None else own
        hidden = functional.linear(self.action_in_proj(x_TA), own) + time_W
        return self.action_time_mlp_out(functional.silu(hidden))

    def forward(
        self,
        kv: Tensor,
        noise_TA: Tensor,
        leftover_TA: Tensor | None = None,
        weights_T1: Tensor | None = None,
    ) -> Tensor:
        """Noise -> the chunk, [..., T, A] padded; nothing else is.

        Args:
            kv: [L, 2, K, C, d] of all rows.
            leftover_TA: what is left of the last chunk, padded with zeros, see
                `flow_dit.euler_step`.
            weights_T1: how much of it counts.
        """
        x, count = noise_TA, kv.shape[-2]
        leftover = torch.zeros_like(x) if leftover_TA is None else leftover_TA
        weights = torch.zeros_like(x[..., :1]) if weights_T1 is None else weights_T1
        crossed = iter(self.given(kv))
        given = [next(crossed) if self.config.is_cross(i) else rows for i, rows in enumerate(kv)]
        rotary = tables(x.shape[-2], self.language, start=count)
        for time, coefficients in zip(self.step_table(), coefficients_of(self.config), strict=True):
            velocity = self.velocity(self.embed(x, time), given, torch.zeros(count), rotary)
            x = euler_step(x, -velocity, coefficients, leftover, weights)
        return x


def tables(count: int, c: LlamaConfig, start: int = 0) -> Rotary:
    """Of places one behind the other."""
    places = np.broadcast_to(np.arange(start, start + count), (3, count))
    cos, sin = mrope_tables(places, theta=c.rope_theta, sections=c.mrope_section)
    return torch.from_numpy(cos), torch.from_numpy(sin)


def times_of(c: ActionExpertConfig) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
    """Of the steps: 1 is noise, 0 would be actions."""
    steps = c.num_inference_timesteps
    return np.array([1.0 - k / steps for k in range(steps)], np.float32)


def coefficients_of(c: ActionExpertConfig) -> Tensor:
    """Of each step, [steps, 2]: how long it is, and how long the way to the actions is from where
    it starts. Velocities point from actions to noise, and steps go against them."""
    steps = c.num_inference_timesteps
    return torch.tensor([[1.0 / steps, 1.0 - k / steps] for k in range(steps)])
