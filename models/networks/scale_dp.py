"""ScaleDP diffusion head: pooled features and the state make one condition, a DiT predicts noise.

The condition is a single vector; it reaches the blocks through adaLN modulations only, which
depend on the step and the condition but not on the actions. That is what lets export compute the
modulations of all steps in one product. Parameter names are the published checkpoint's; the
sampler's oracle is `diffusers` `DDIMScheduler`.

Axes: T = step in the chunk, A = action dimension, B = pool bin, M = modulation row, W = head width.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.networks.config import ScaleDPConfig
from models.networks.layers import GeluMLP, SelfAttention

FREQUENCIES = 256


class ScaleDP(nn.Module):
    def __init__(self, config: ScaleDPConfig, cond_dim: int) -> None:
        super().__init__()
        self.config = config
        pooled = cond_dim * config.adaptive_pool_dim
        self.norm_after_pool = nn.LayerNorm(pooled)
        self.state_linear = nn.Linear(config.state_dim, config.state_embed_dim)
        self.combine = nn.Sequential(
            nn.Linear(pooled + config.state_embed_dim, config.combine_dim),
            nn.ReLU(),
            nn.Linear(config.combine_dim, config.combine_dim),
            nn.ReLU(),
            nn.Linear(config.combine_dim, cond_dim),
        )
        self.x_embedder = nn.Linear(config.action_dim, config.n_emb)
        self.t_embedder = TimestepEmbedder(config.n_emb)
        self.cond_obs_emb = nn.Linear(cond_dim, config.n_emb)
        self.pos_embed = nn.Parameter(torch.zeros(1, config.prediction_horizon, config.n_emb))
        self.blocks = nn.ModuleList(ScaleDPBlock(config) for _ in range(config.depth))
        self.final_layer = FinalLayer(config)

    def condition(self, pooled_BD: Tensor, state: Tensor) -> Tensor:
        """Averaged tokens [..., B, D] and the normalised state -> condition [..., W]."""
        features = self.norm_after_pool(pooled_BD.flatten(-2))
        features = torch.cat([features, self.state_linear(state)], dim=-1)
        return self.cond_obs_emb(self.combine(features))

    def epsilon(self, x_TA: Tensor, t: Tensor, condition: Tensor) -> Tensor:
        """Predicted noise of `x_TA` at timestep `t` (one per batch element)."""
        return self.denoise(x_TA, self.modulations(self.t_embedder(t) + condition))

    def modulations(self, c: Tensor) -> Tensor:
        """All adaLN vectors for a combined condition c [..., W] -> [..., M, W], M = 6 depth + 2."""
        layers: list[nn.Module] = [*self.blocks, self.final_layer]
        rows = [layer.get_submodule("adaLN_modulation")(c) for layer in layers]
        return torch.cat(rows, dim=-1).unflatten(-1, (-1, self.config.n_emb))

    def denoise(self, x_TA: Tensor, modulation_MW: Tensor) -> Tensor:
        """The DiT itself, its modulations given."""
        x = self.x_embedder(x_TA) + self.pos_embed[0]
        for index, block in enumerate(self.blocks):
            x = block(x, modulation_MW[..., 6 * index : 6 * index + 6, :])
        return self.final_layer(x, modulation_MW[..., -2:, :])


class TimestepEmbedder(nn.Module):
    """Sinusoidal step embedding through a small MLP."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(FREQUENCIES, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, t: Tensor) -> Tensor:
        return self.mlp(timestep_embedding(t).to(next(self.parameters()).dtype))


class ScaleDPBlock(nn.Module):
    def __init__(self, config: ScaleDPConfig) -> None:
        super().__init__()
        width = config.n_emb
        self.attn = SelfAttention(width, config.num_heads)
        self.mlp = GeluMLP(width, int(width * config.mlp_ratio), approximate="tanh")
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))

    def forward(self, x: Tensor, modulation_6W: Tensor) -> Tensor:
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = modulation_6W.split(1, dim=-2)
        x = x + gate_a * self.attn(_modulate(x, shift_a, scale_a))
        return x + gate_m * self.mlp(_modulate(x, shift_m, scale_m))


class FinalLayer(nn.Module):
    def __init__(self, config: ScaleDPConfig) -> None:
        super().__init__()
        self.linear = nn.Linear(config.n_emb, config.action_dim)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(config.n_emb, 2 * config.n_emb))

    def forward(self, x: Tensor, modulation_2W: Tensor) -> Tensor:
        shift, scale = modulation_2W.split(1, dim=-2)
        return self.linear(_modulate(x, shift, scale))


def timestep_embedding(t: Tensor) -> Tensor:
    """Sinusoids of `t`, [..., 256] bfloat16.

    The frequencies and the result are rounded to bfloat16 because the policy was trained so
    (published `modeling_scaledp.py`); float32 here would be a different network.
    """
    half = FREQUENCIES // 2
    steps = torch.arange(half, dtype=torch.bfloat16, device=t.device)
    frequencies = torch.exp(-math.log(10000) * steps / half)
    angles = t[..., None].float() * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=-1).to(torch.bfloat16)


def inference_timesteps(config: ScaleDPConfig) -> list[int]:
    """Timesteps in the order they are sampled, noisiest first ("leading" spacing, offset 0)."""
    stride = config.num_train_timesteps // config.num_inference_timesteps
    return [k * stride for k in reversed(range(config.num_inference_timesteps))]


def ddim_coefficients(config: ScaleDPConfig) -> Tensor:
    """Per sampled step: sqrt(1 - a_t), sqrt(a_t), sqrt(a_prev), sqrt(1 - a_prev), float32 [K, 4].

    Squared-cosine schedule of Nichol and Dhariwal (2021), beta capped at 0.999; the last step goes
    to a = 1. Kept in float32 in every recipe: at the first of ten steps sqrt(a_t) is 1/204, and
    dividing by it multiplies every error of the predicted noise by 204.
    """
    steps = config.num_train_timesteps

    def alpha_bar(time: float) -> float:
        return math.cos((time + 0.008) / 1.008 * math.pi / 2) ** 2

    betas = [
        min(1 - alpha_bar((i + 1) / steps) / alpha_bar(i / steps), 0.999) for i in range(steps)
    ]
    alphas = torch.cumprod(1.0 - torch.tensor(betas, dtype=torch.float32), dim=0)
    stride = steps // config.num_inference_timesteps
    rows = []
    for t in inference_timesteps(config):
        a_t = alphas[t]
        a_prev = alphas[t - stride] if t >= stride else torch.tensor(1.0)
        rows.append(torch.stack([(1 - a_t), a_t, a_prev, (1 - a_prev)]) ** 0.5)
    return torch.stack(rows)


def ddim_step(
    x_TA: Tensor,
    epsilon_TA: Tensor,
    coefficients: Tensor,
    leftover_TA: Tensor,
    weights_T1: Tensor,
) -> Tensor:
    """One deterministic DDIM step with the predicted actions clipped to [-1, 1], inpainted.

    Song et al. (2021), eta = 0. Where the weight is 1, the clean action is the leftover's, and the
    noise the one that `x_TA` then holds: this row stays on the way from its noise to the leftover,
    and the network sees it as it saw actions in training. Where it is 0, nothing is changed, to the
    bit. In between both are mixed: the soft masks are those of Black, Galliker and Levine (2025),
    whose own correction takes the network's derivative, which no engine has.

    Args:
        x_TA: [T, A].
        epsilon_TA: [T, A] the noise that is predicted to be in it.
        coefficients: a row of `ddim_coefficients`.
        leftover_TA: [T, A] of the last chunk, in policy units.
        weights_T1: [T, 1] in [0, 1].
    """
    sqrt_1m_a, sqrt_a, sqrt_prev, sqrt_1m_prev = coefficients.unbind(-1)
    clean = ((x_TA - sqrt_1m_a * epsilon_TA) / sqrt_a).clamp(-1.0, 1.0)
    implied = (x_TA - sqrt_a * leftover_TA) / sqrt_1m_a
    free_T1 = 1.0 - weights_T1
    clean = free_T1 * clean + weights_T1 * leftover_TA
    epsilon = free_T1 * epsilon_TA + weights_T1 * implied
    return sqrt_prev * clean + sqrt_1m_prev * epsilon


def _modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    normed = functional.layer_norm(x, x.shape[-1:], eps=1e-6)
    return normed * (1 + scale) + shift
