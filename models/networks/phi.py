"""Phi decoder as a prefill engine, called as `models.networks.language.LanguageModel` is.

Each layer adds attention and MLP of one and the same norm to its input. Queries and keys are
normalised head by head, and the first half of each is rotated. Oracle: `transformers` `PhiModel`
with `qk_layernorm`; parameter names are its own.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models.networks.language import run_layers
from models.networks.layers import GeluMLP, attend, merge_heads, rotate
from models.networks.phi_config import PhiConfig


class Phi(nn.Module):
    """The decoder stack and its token table."""

    num_deepstack = 0

    def __init__(self, config: PhiConfig) -> None:
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(PhiLayer(config) for _ in range(config.num_hidden_layers))
        self.final_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    @property
    def norm(self) -> nn.Module:
        """Behind the last layer."""
        return self.final_layernorm

    def forward(
        self, embeddings: Tensor, past: Tensor, mask: Tensor, cos: Tensor, sin: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Prefill S tokens behind P cached ones.

        Args:
            embeddings: [..., S, D].
            past: [..., P, layers, 2, H, d] cached keys (after rotation) and values.
            mask: [S, P + S], added to the scores. Finite, and every row admits some column.
            cos: [S, r], cosines of the S tokens for the r numbers of a head that are rotated.
            sin: [S, r].

        Returns:
            Keys and values of the S tokens in the layout of `past`, and their hidden states after
            the final norm, [..., S, D].
        """
        kv, states = run_layers(self.layers, embeddings, past, mask, cos, sin)
        return kv, self.final_layernorm(states[-1])

    def empty_past(self, slots: int) -> Tensor:
        """Zeros in the layout of `past`, [slots, layers, 2, H, d]."""
        c = self.config
        return torch.zeros(slots, c.num_hidden_layers, 2, c.num_key_value_heads, c.head_dim)


class PhiLayer(nn.Module):
    def __init__(self, config: PhiConfig) -> None:
        super().__init__()
        self.self_attn = PhiAttention(config)
        self.mlp = GeluMLP(config.hidden_size, config.intermediate_size, approximate="tanh")
        self.input_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(
        self, x: Tensor, past: Tensor, mask: Tensor, cos: Tensor, sin: Tensor
    ) -> tuple[Tensor, Tensor]:
        normed = self.input_layernorm(x)
        attended, kv = self.self_attn(normed, past, mask, cos, sin)
        return attended + self.mlp(normed) + x, kv


class PhiAttention(nn.Module):
    def __init__(self, config: PhiConfig) -> None:
        super().__init__()
        self.num_heads, width = config.num_attention_heads, config.hidden_size
        self.q_proj = nn.Linear(width, width)
        self.k_proj = nn.Linear(width, width)
        self.v_proj = nn.Linear(width, width)
        self.dense = nn.Linear(width, width)
        self.q_layernorm = nn.LayerNorm(config.head_dim, eps=config.layer_norm_eps)
        self.k_layernorm = nn.LayerNorm(config.head_dim, eps=config.layer_norm_eps)

    def forward(
        self, x: Tensor, past_P2Hd: Tensor, mask_SC: Tensor, cos: Tensor, sin: Tensor
    ) -> tuple[Tensor, Tensor]:
        q, k, v = (
            layer(x).unflatten(-1, (self.num_heads, -1))
            for layer in (self.q_proj, self.k_proj, self.v_proj)
        )
        q = rotate_first(self.q_layernorm(q), cos[:, None], sin[:, None])
        k = rotate_first(self.k_layernorm(k), cos[:, None], sin[:, None])
        new_S2Hd = torch.stack([k, v], dim=-3)
        kv_HCd = torch.cat([past_P2Hd, new_S2Hd], dim=-4).movedim(-4, -2)
        out = attend(q.transpose(-3, -2), kv_HCd.select(-4, 0), kv_HCd.select(-4, 1), mask_SC)
        return self.dense(merge_heads(out)), new_S2Hd


def rotate_first(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary positions on as many of the first numbers as there are angles."""
    count = cos.shape[-1]
    turned = rotate(x[..., :count], cos, sin)
    return turned if count == x.shape[-1] else torch.cat([turned, x[..., count:]], dim=-1)
