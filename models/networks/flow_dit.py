"""Flow-matching action head with cross-attention: GR00T N1.5's, as starVLA's policies have it.

Rows of the state (if the policy has one), of learned future tokens and of the noisy actions pass
through transformer blocks. Even blocks attend to the hidden states of the language model, odd ones
to the rows themselves; in older policies all attend to the language model. The time of a step
reaches a block by the scale and shift of its first norm, and an action row by its embedding. Both
depend on the step alone: they are tables that an export computes once (`step_tables`). Keys and
values of the language tokens are the same for all steps of a tick (`keys_values`).

Parameter names are the published ones (`action_model.*` of starVLA's checkpoints). Oracle: the
blocks of `diffusers` (`Attention`, `FeedForward`, `Timesteps`, `TimestepEmbedding`), which starVLA
composes it of.

Axes: T = action in the chunk, A = action dimension, R = row (state, future tokens, actions), L =
token of the language model, C = its width, W = width of the head, H = heads, d = width of a head,
K = step of the sampler, M = modulation row, B = blocks that attend to the language model.
"""

from __future__ import annotations

import math
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.networks.config import FlowDiTConfig
from models.networks.layers import attend, merge_heads

FREQUENCIES = 256
"""Of the embedding of a step's time."""


class Sampled(Protocol):
    """The steps of a sampler."""

    @property
    def num_inference_timesteps(self) -> int: ...
    @property
    def num_timestep_buckets(self) -> int: ...


class FlowDiT(nn.Module):
    def __init__(self, config: FlowDiTConfig, context_dim: int) -> None:
        """
        Args:
            context_dim: C.
        """
        super().__init__()
        self.config = config
        width = config.width
        self.model = DiT(config, context_dim)
        self.state_encoder = (
            ReluMLP(config.state_dim, config.hidden_size, width) if config.state_dim else None
        )
        self.action_encoder = ActionEncoder(config.action_dim, width)
        self.action_decoder = ReluMLP(config.output_dim, config.hidden_size, config.action_dim)
        self.future_tokens = nn.Embedding(config.num_future_tokens, width)
        self.position_embedding = (
            nn.Embedding(config.max_seq_len, width) if config.add_pos_embed else None
        )

    def step_tables(self) -> Tensor:
        """What depends on a step of the sampler alone, [K, M, W] float32.

        Rows: scale and shift of each block's first norm in turn, shift and scale of the last norm,
        and what the time of the step adds to an embedded action before its activation. Products are
        float64, so that no machine's way of adding up shows in them.
        """
        times = inference_times(self.config)
        activated = functional.silu(self.model.timestep_encoder(times))
        layers = [*(block.norm1.linear for block in self.model.blocks), self.model.proj_out_1]
        rows = [_in_float64(layer, activated).unflatten(-1, (2, -1)) for layer in layers]
        rows.append(self.action_encoder.times(times)[:, None])
        return torch.cat(rows, dim=1).float()

    def keys_values(self, context_LC: Tensor) -> Tensor:
        """[..., L, B, 2, W] of the language tokens, for every block that attends to them."""
        layers = [
            layer
            for block in self.model.blocks
            if block.is_cross
            for layer in (block.attn1.to_k, block.attn1.to_v)
        ]
        made = torch.stack([layer(context_LC) for layer in layers], dim=-2)
        return made.unflatten(-2, (-1, 2))

    def state_row(self, state: Tensor | None) -> Tensor | None:
        """[..., S] in policy units -> its row, [..., 1, W]; None where the policy is given none."""
        if state is None:
            return None
        if self.state_encoder is None:
            raise ValueError("a state is given to a head that has no encoder for one")
        return self.state_encoder(state)[..., None, :]

    def velocity(
        self,
        x_TA: Tensor,
        keys_values_LB2W: Tensor,
        mask_L: Tensor,
        step_MW: Tensor,
        state_1W: Tensor | None = None,
    ) -> Tensor:
        """Where the noisy actions flow, [..., T, A] in policy units.

        Args:
            keys_values_LB2W: of `keys_values`.
            mask_L: added to the scores of each language token: finite, 0 where it is no padding.
            step_MW: of `step_tables`.
            state_1W: of `state_row`.
        """
        actions = self.action_encoder(x_TA, step_MW[..., -1, :])
        return self.velocity_of_rows(actions, keys_values_LB2W, mask_L, step_MW, state_1W)

    def velocity_of_rows(
        self,
        actions_TW: Tensor,
        keys_values_LB2W: Tensor,
        mask_L: Tensor,
        step_MW: Tensor,
        state_1W: Tensor | None = None,
    ) -> Tensor:
        """`velocity` of actions that are embedded already."""
        horizon = actions_TW.shape[-2]
        if self.position_embedding is not None:
            actions_TW = actions_TW + self.position_embedding.weight[:horizon]
        rows = [self.future_tokens.weight.expand(*actions_TW.shape[:-2], -1, -1), actions_TW]
        if state_1W is not None:
            rows.insert(0, state_1W.expand(*actions_TW.shape[:-2], -1, -1))
        modulations = step_MW[..., :-1, :]
        x_RW = self.model(torch.cat(rows, dim=-2), keys_values_LB2W, mask_L, modulations)
        return self.action_decoder(x_RW[..., -horizon:, :])

    def forward(
        self,
        context_LC: Tensor,
        noise_TA: Tensor,
        state: Tensor | None = None,
        leftover_TA: Tensor | None = None,
        weights_T1: Tensor | None = None,
    ) -> Tensor:
        """Hidden states, noise and perhaps a state -> the chunk, [..., T, A]; nothing is padded.

        Args:
            leftover_TA: what is left of the last chunk, see `euler_step`.
            weights_T1: how much of it counts.
        """
        x_TA = noise_TA
        leftover_TA = torch.zeros_like(x_TA) if leftover_TA is None else leftover_TA
        weights_T1 = torch.zeros_like(x_TA[..., :1]) if weights_T1 is None else weights_T1
        keys_values, state_row = self.keys_values(context_LC), self.state_row(state)
        no_padding, coefficients = torch.zeros(context_LC.shape[-2]), coefficients_of(self.config)
        for k, step in enumerate(self.step_tables()):
            velocity = self.velocity(x_TA, keys_values, no_padding, step, state_row)
            x_TA = euler_step(x_TA, velocity, coefficients[k], leftover_TA, weights_T1)
        return x_TA


class DiT(nn.Module):
    """The blocks, and what stands behind them."""

    def __init__(self, config: FlowDiTConfig, context_dim: int) -> None:
        super().__init__()
        width = config.width
        self.timestep_encoder = TimestepEncoder(width)
        self.transformer_blocks = nn.ModuleList(
            Block(config, context_dim if config.is_cross(index) else None)
            for index in range(config.num_layers)
        )
        self.proj_out_1 = nn.Linear(width, 2 * width)
        self.proj_out_2 = nn.Linear(width, config.output_dim)

    @property
    def blocks(self) -> list[Block]:
        return [block for block in self.transformer_blocks if isinstance(block, Block)]

    def forward(
        self, x_RW: Tensor, keys_values_LB2W: Tensor, mask_L: Tensor, modulations_MW: Tensor
    ) -> Tensor:
        cross = 0
        for index, block in enumerate(self.blocks):
            given = None
            if block.is_cross:
                given, cross = keys_values_LB2W.select(-3, cross), cross + 1
            scale_shift = modulations_MW[..., 2 * index : 2 * index + 2, :]
            x_RW = block(x_RW, scale_shift, given, mask_L)
        shift, scale = modulations_MW[..., -2:, :].split(1, dim=-2)
        normed = functional.layer_norm(x_RW, x_RW.shape[-1:], eps=1e-6)
        return self.proj_out_2(normed * (1 + scale) + shift)


class Block(nn.Module):
    def __init__(self, config: FlowDiTConfig, context_dim: int | None) -> None:
        super().__init__()
        self.is_cross = context_dim is not None
        self.norm1 = AdaLayerNorm(config.width)
        self.attn1 = Attention(config, context_dim or config.width)
        self.ff = FeedForward(config.width)

    def forward(
        self, x_RW: Tensor, scale_shift_2W: Tensor, given_L2W: Tensor | None, mask_L: Tensor
    ) -> Tensor:
        scale, shift = scale_shift_2W.split(1, dim=-2)
        normed = functional.layer_norm(x_RW, x_RW.shape[-1:], eps=1e-5) * (1 + scale) + shift
        x_RW = x_RW + self.attn1(normed, given_L2W, mask_L)
        return x_RW + self.ff(functional.layer_norm(x_RW, x_RW.shape[-1:], eps=1e-5))


class Attention(nn.Module):
    """Of the rows to the language tokens, whose keys and values are given, or to themselves."""

    def __init__(self, config: FlowDiTConfig, context_dim: int) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        self.to_q = nn.Linear(config.width, config.width)
        self.to_k = nn.Linear(context_dim, config.width)
        self.to_v = nn.Linear(context_dim, config.width)
        self.to_out = nn.ModuleList([nn.Linear(config.width, config.width)])

    def forward(self, x_RW: Tensor, given_L2W: Tensor | None, mask_L: Tensor) -> Tensor:
        mask = None
        if given_L2W is None:
            k, v = self.to_k(x_RW), self.to_v(x_RW)
        else:
            (k, v), mask = given_L2W.unbind(-2), mask_L
        q_HRd, k_HLd, v_HLd = (self._heads(t) for t in (self.to_q(x_RW), k, v))
        return self.to_out[0](merge_heads(attend(q_HRd, k_HLd, v_HLd, mask)))

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.num_heads, -1)).transpose(-3, -2)


class FeedForward(nn.Module):
    """Two layers around a GELU, its tanh form; `net.1` is a dropout where it is trained."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.net = nn.Sequential(
            GeluProjection(width, 4 * width), nn.Identity(), nn.Linear(4 * width, width)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class GeluProjection(nn.Module):
    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.proj = nn.Linear(width, hidden)

    def forward(self, x: Tensor) -> Tensor:
        return functional.gelu(self.proj(x), approximate="tanh")


class AdaLayerNorm(nn.Module):
    """The layer alone: what it puts out is a table, `FlowDiT.step_tables`."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, 2 * width)


class TimestepEncoder(nn.Module):
    """Times of steps -> [K, W]: cosines first, and the last frequency is 1 / 10000."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.timestep_embedder = TimestepEmbedder(width)

    def forward(self, times_K: Tensor) -> Tensor:
        half = FREQUENCIES // 2
        angles = _angles(times_K, half, half - 1).double()
        return self.timestep_embedder(torch.cat([angles.cos(), angles.sin()], dim=-1))


class TimestepEmbedder(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(FREQUENCIES, width)
        self.linear_2 = nn.Linear(width, width)

    def forward(self, sinusoids: Tensor) -> Tensor:
        return _in_float64(self.linear_2, functional.silu(_in_float64(self.linear_1, sinusoids)))


class ActionEncoder(nn.Module):
    """An action and the time of its step -> a row."""

    def __init__(self, action_dim: int, width: int) -> None:
        super().__init__()
        self.layer1 = nn.Linear(action_dim, width)
        self.layer2 = nn.Linear(2 * width, width)
        self.layer3 = nn.Linear(width, width)

    def times(self, times_K: Tensor) -> Tensor:
        """What `layer2` makes of the times alone, its bias included, [K, W]: sines first."""
        width = self.layer1.out_features
        angles = _angles(times_K, width // 2, width // 2).double()
        sinusoids = torch.cat([angles.sin(), angles.cos()], dim=-1)
        return _in_float64(self.layer2, sinusoids, slice(width, None))

    @property
    def own(self) -> Tensor:
        """What `layer2` multiplies the action by, [W, W]; the other half is that of the time."""
        return self.layer2.weight[:, : self.layer1.out_features]

    def forward(self, x_TA: Tensor, time_W: Tensor) -> Tensor:
        own = functional.linear(self.layer1(x_TA), self.own)
        return self.layer3(functional.silu(own + time_W))


class ReluMLP(nn.Module):
    def __init__(self, width: int, hidden: int, out: int) -> None:
        super().__init__()
        self.layer1 = nn.Linear(width, hidden)
        self.layer2 = nn.Linear(hidden, out)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer2(functional.relu(self.layer1(x)))


def inference_times(config: Sampled) -> Tensor:
    """Times of the steps, [K] whole numbers: 0 is noise, all buckets would be actions."""
    steps, buckets = config.num_inference_timesteps, config.num_timestep_buckets
    return torch.tensor([int(k / steps * buckets) for k in range(steps)])


def _angles(times_K: Tensor, count: int, last: int) -> Tensor:
    """[K, count]: times by falling frequencies, 1 at first, and 1 / 10000 at `last`."""
    exponents = torch.arange(count, dtype=torch.float32) / last
    return times_K.float()[:, None] * torch.exp(-math.log(10000) * exponents)


def _in_float64(layer: nn.Linear, x: Tensor, columns: slice = slice(None)) -> Tensor:
    """The layer, or some of its inputs' columns, on the layer's device."""
    weight, bias = layer.weight[:, columns].double(), layer.bias.double()
    return functional.linear(x.to(weight.device, torch.float64), weight, bias)


def coefficients_of(config: Sampled) -> Tensor:
    """Of each step, [K, 2]: how long it is, and how long the way to the actions is from where it
    starts."""
    steps = config.num_inference_timesteps
    return torch.tensor([[1.0 / steps, 1.0 - k / steps] for k in range(steps)])


def euler_step(
    x_TA: Tensor,
    velocity_TA: Tensor,
    coefficients: Tensor,
    leftover_TA: Tensor,
    weights_T1: Tensor,
) -> Tensor:
    """One step of Euler's method from noise to actions (Lipman et al., 2023).

    Where an action is left over from the last chunk it takes part of the place of the one that the
    velocity points at, as `scale_dp.ddim_step` has it: with weight 1 the last step ends there.

    Args:
        coefficients: a row of `coefficients_of`.
        leftover_TA: [T, A] in policy units.
        weights_T1: [T, 1], how much of it counts.
    """
    length, way = coefficients[0], coefficients[1]
    towards = (leftover_TA - x_TA) / way
    return x_TA + length * ((1.0 - weights_T1) * velocity_TA + weights_T1 * towards)
