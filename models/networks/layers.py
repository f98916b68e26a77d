"""The few layers that the networks share.

Axes, here and in the networks: N = patches or tokens, S = tokens of this call, P = cached tokens,
C = P + S, H = heads, K = key/value heads, d = head width, D = model width. Any number of batch
axes may stand in front; export uses none.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


class RMSNorm(nn.Module):
    """Root-mean-square normalisation, computed in float32 whatever the input is."""

    def __init__(self, width: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        x32 = x.float()
        # A division by a root, not `rsqrt`: the form that graph compilers recognise and fuse.
        x32 = x32 / torch.sqrt(x32.pow(2).mean(-1, keepdim=True) + self.eps)
        return self.weight * x32.to(x.dtype)


class SwiGLU(nn.Module):
    """Gated MLP of Qwen2.5: `down(silu(gate(x)) * up(x))`."""

    def __init__(self, width: int, hidden: int, *, bias: bool) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(width, hidden, bias=bias)
        self.up_proj = nn.Linear(width, hidden, bias=bias)
        self.down_proj = nn.Linear(hidden, width, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(functional.silu(self.gate_proj(x)) * self.up_proj(x))


class GeluMLP(nn.Module):
    """Two linear layers around a GELU; `approximate` as in `torch.nn.functional.gelu`."""

    def __init__(self, width: int, hidden: int, *, approximate: str) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)
        self.approximate = approximate

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(functional.gelu(self.fc1(x), approximate=self.approximate))


class SelfAttention(nn.Module):
    """Multi-head self-attention with one fused QKV projection, no mask, no positions."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x_ND: Tensor) -> Tensor:
        q, k, v = split_heads(self.qkv(x_ND), self.num_heads)
        return self.proj(merge_heads(attend(q, k, v)))


def split_heads(qkv_N3D: Tensor, num_heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """[..., N, 3 * D] -> three of [..., H, N, d]."""
    qkv = qkv_N3D.unflatten(-1, (3, num_heads, -1)).movedim(-3, 0).transpose(-3, -2)
    return qkv[0], qkv[1], qkv[2]


def merge_heads(x_HNd: Tensor) -> Tensor:
    """[..., H, N, d] -> [..., N, D]."""
    return x_HNd.transpose(-3, -2).flatten(-2)


def attend(q_HNd: Tensor, k_HCd: Tensor, v_HCd: Tensor, mask: Tensor | None = None) -> Tensor:
    """Scaled dot-product attention, softmax in float32. `mask` is added to the scores.

    Written out, because the exported graph is what gets quantized and compiled, and a fused
    operator would leave its decomposition to the exporter.
    """
    scores = (q_HNd * q_HNd.shape[-1] ** -0.5) @ k_HCd.transpose(-2, -1)
    if mask is not None:
        scores = scores + mask
    return torch.softmax(scores.float(), dim=-1).to(v_HCd.dtype) @ v_HCd


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary position embedding; `cos` and `sin` must broadcast against `x`."""
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-second, first], dim=-1) * sin
