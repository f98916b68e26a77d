"""Qwen2.5 or Qwen3 decoder as a prefill engine: embeddings and cached keys in, hidden states out.

There is no LM head and no in-place cache: the new keys and values leave as an output in the layout
of the cache input, so that one call's output can be bound as another call's cache.
Oracles: `transformers` `Qwen2_5_VLTextModel` and `Qwen3VLTextModel`; parameter names are theirs.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from models.networks.config import AnyLanguageConfig
from models.networks.layers import RMSNorm, SwiGLU, attend, rotate


class DecoderSizes(Protocol):
    """What a layer is made of."""

    @property
    def hidden_size(self) -> int: ...
    @property
    def intermediate_size(self) -> int: ...
    @property
    def num_attention_heads(self) -> int: ...
    @property
    def num_key_value_heads(self) -> int: ...
    @property
    def head_dim(self) -> int: ...
    @property
    def qkv_bias(self) -> bool: ...
    @property
    def qk_norm(self) -> bool: ...
    @property
    def rms_norm_eps(self) -> float: ...


class LanguageModel(nn.Module):
    """The decoder stack and its token table."""

    def __init__(
        self,
        config: AnyLanguageConfig,
        num_deepstack: int = 0,
        *,
        layer: type[DecoderLayer] | None = None,
    ) -> None:
        """
        Args:
            num_deepstack: levels of deep-stack features that the vision tower gives.
            layer: kind of the layers, if not the plain one.
        """
        super().__init__()
        layer = layer or DecoderLayer
        self.config, self.num_deepstack = config, num_deepstack
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(layer(config) for _ in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(
        self,
        embeddings: Tensor,
        past: Tensor,
        mask: Tensor,
        cos: Tensor,
        sin: Tensor,
        *deepstack: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Prefill S tokens behind P cached ones.

        Args:
            embeddings: [..., S, D].
            past: [..., P, layers, 2, K, d] cached keys (after rotation) and values.
            mask: [S, P + S], added to the scores. Finite, and every row admits some column.
            cos: [S, d], M-RoPE cosines of the S tokens.
            sin: [S, d].
            deepstack: [..., S, D] of each level: an image's features, and zeros where text stands.

        Returns:
            Keys and values of the S tokens in the layout of `past`, and their hidden states after
            the final norm, [..., S, D].
        """
        kv, states = run_layers(self.layers, embeddings, past, mask, cos, sin, deepstack)
        return kv, self.norm(states[-1])

    def empty_past(self, slots: int) -> Tensor:
        """Zeros in the layout of `past`, [slots, layers, 2, K, d]."""
        c = self.config
        return torch.zeros(slots, c.num_hidden_layers, 2, c.num_key_value_heads, c.head_dim)


def run_layers(
    layers: Iterable[nn.Module],
    x: Tensor,
    past: Tensor,
    mask: Tensor,
    cos: Tensor,
    sin: Tensor,
    deepstack: Sequence[Tensor] = (),
) -> tuple[Tensor, list[Tensor]]:
    """Some layers in a row; `past` and the new keys and values are theirs alone.

    Args:
        deepstack: what is added behind the first of these layers, one for each.

    Returns:
        New keys and values, and what each layer puts out, before any norm.
    """
    new, states = [], []
    for index, layer in enumerate(layers):
        x, kv = layer(x, past.select(-4, index), mask, cos, sin)
        if index < len(deepstack):
            x = x + deepstack[index]
        new.append(kv)
        states.append(x)
    return torch.stack(new, dim=-4), states


def stacked(states: Sequence[Tensor], norm: nn.Module) -> Tensor:
    """What layers put out, [..., S, D] each -> [..., layers, S, D], the last one behind `norm`."""
    return torch.stack([*states[:-1], norm(states[-1])], dim=-3)


class DecoderLayer(nn.Module):
    def __init__(self, config: DecoderSizes) -> None:
        super().__init__()
        self.self_attn = GroupedAttention(config)
        self.mlp = SwiGLU(config.hidden_size, config.intermediate_size, bias=False)
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(
        self, x: Tensor, past: Tensor, mask: Tensor, cos: Tensor, sin: Tensor
    ) -> tuple[Tensor, Tensor]:
        attended, kv = self.self_attn(self.input_layernorm(x), past, mask, cos, sin)
        x = x + attended
        return x + self.mlp(self.post_attention_layernorm(x)), kv


class SharingLayer(DecoderLayer):
    """One that attends to keys and values of another network, or whose own another one reads: they
    are scaled for both, or for none."""


class GroupedAttention(nn.Module):
    """Grouped-query attention; keys and values are never repeated for the heads that share them."""

    def __init__(self, config: DecoderSizes) -> None:
        super().__init__()
        self.kv_heads = config.num_key_value_heads
        self.group = config.num_attention_heads // config.num_key_value_heads
        self.head_dim = config.head_dim
        width, bias = config.hidden_size, config.qkv_bias
        q_width, kv_width = (
            self.group * self.kv_heads * self.head_dim,
            self.kv_heads * self.head_dim,
        )
        self.q_proj = nn.Linear(width, q_width, bias=bias)
        self.k_proj = nn.Linear(width, kv_width, bias=bias)
        self.v_proj = nn.Linear(width, kv_width, bias=bias)
        self.o_proj = nn.Linear(q_width, width, bias=False)
        self.qk_norm = config.qk_norm
        if config.qk_norm:
            self.q_norm = RMSNorm(self.head_dim, config.rms_norm_eps)
            self.k_norm = RMSNorm(self.head_dim, config.rms_norm_eps)

    def forward(
        self, x: Tensor, past_P2Kd: Tensor, mask_SC: Tensor, cos: Tensor, sin: Tensor
    ) -> tuple[Tensor, Tensor]:
        q = self.q_proj(x).unflatten(-1, (self.kv_heads, self.group, self.head_dim))
        k = self.k_proj(x).unflatten(-1, (self.kv_heads, self.head_dim))
        v = self.v_proj(x).unflatten(-1, (self.kv_heads, self.head_dim))
        if self.qk_norm:
            q, k = self.q_norm(q), self.k_norm(k)
        q = rotate(q, cos[:, None, None], sin[:, None, None])
        k = rotate(k, cos[:, None], sin[:, None])
        new_S2Kd = torch.stack([k, v], dim=-3)
        kv_KCd = torch.cat([past_P2Kd, new_S2Kd], dim=-4).movedim(-4, -2)
        q_KGSd = q.movedim(-4, -2)
        out = attend(
            q_KGSd.flatten(-3, -2),
            kv_KCd.select(-4, 0),
            kv_KCd.select(-4, 1),
            mask_SC.repeat(self.group, 1),
        )
        out = out.unflatten(-2, (self.group, -1)).movedim(-2, -4).flatten(-3)
        return self.o_proj(out), new_S2Kd
