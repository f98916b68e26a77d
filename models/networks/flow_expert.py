"""Flow-matching action expert: a narrow decoder that attends to keys and values of a wide one.

Layer i of the expert attends to those that layer i of the language model made of the whole prompt,
and to its own rows, one for each noisy action, in both directions. The rows stand behind the
prompt: their rotary positions go on from there. So the prompt is read once a tick, whatever the
number of steps. The time of a step enters by the embedding of the actions, and is a table.

Source of the structure: pi0 (2410.24164), without its row of the state. How a step's time becomes a
row, and the direction of the flow, from noise at 0 to actions at 1, are those of
`models.networks.flow_dit`. Oracle: `transformers` `Qwen2Model` behind the other one's cache.

Axes: T = action in the chunk, A = action dimension, C = token of the prompt, L = layer, K =
key/value heads, d = head width, W = width of the expert, N = step of the sampler.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from models.networks.flow_dit import ActionEncoder, coefficients_of, euler_step, inference_times
from models.networks.flow_expert_config import FlowExpertConfig
from models.networks.language import SharingLayer
from models.networks.layers import RMSNorm


class FlowExpert(nn.Module):
    def __init__(self, config: FlowExpertConfig) -> None:
        super().__init__()
        self.config = config
        self.action_encoder = ActionEncoder(config.action_dim, config.hidden_size)
        self.layers = nn.ModuleList(SharingLayer(config) for _ in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.action_out_proj = nn.Linear(config.hidden_size, config.action_dim)

    def step_tables(self) -> Tensor:
        """What the time of a step adds to an embedded action before its activation, [N, W]."""
        return self.action_encoder.times(inference_times(self.config)).float()

    def velocity_of_rows(
        self,
        rows_TW: Tensor,
        prompt: Sequence[tuple[Tensor, ...]],
        mask_C: Tensor,
        cos: Tensor,
        sin: Tensor,
    ) -> Tensor:
        """Where actions that are embedded already flow, [..., T, A] in policy units.

        Args:
            prompt: of each layer, [C, 2, K, d] in pieces that lie one behind the other.
            mask_C: added to the scores of each token of the prompt: 0, or where it is padding a
                finite number far below.
            cos: [T, d] rotary cosines of the actions' positions.
            sin: [T, d].
        """
        horizon, batch = rows_TW.shape[-2], rows_TW.shape[:-2]
        mask = torch.cat([mask_C, torch.zeros(horizon)]).expand(horizon, -1)
        for layer, pieces in zip(self.layers, prompt, strict=True):
            past = torch.cat(list(pieces), dim=-4)
            past = past.expand(*batch, *past.shape)
            rows_TW, _ = layer(rows_TW, past, mask, cos, sin)
        return self.action_out_proj(self.norm(rows_TW))

    def forward(
        self,
        prompt_CL2Kd: Tensor,
        cos: Tensor,
        sin: Tensor,
        noise_TA: Tensor,
        leftover_TA: Tensor | None = None,
        weights_T1: Tensor | None = None,
    ) -> Tensor:
        """Keys and values of the prompt, without padding, and noise -> the chunk, [..., T, A].

        Args:
            leftover_TA: what is left of the last chunk, see `flow_dit.euler_step`.
            weights_T1: how much of it counts.
        """
        x_TA = noise_TA
        leftover_TA = torch.zeros_like(x_TA) if leftover_TA is None else leftover_TA
        weights_T1 = torch.zeros_like(x_TA[..., :1]) if weights_T1 is None else weights_T1
        prompt = [(kv,) for kv in prompt_CL2Kd.unbind(-4)]
        no_padding, coefficients = torch.zeros(len(prompt_CL2Kd)), coefficients_of(self.config)
        for k, time_W in enumerate(self.step_tables()):
            rows = self.action_encoder(x_TA, time_W)
            velocity = self.velocity_of_rows(rows, prompt, no_padding, cos, sin)
            x_TA = euler_step(x_TA, velocity, coefficients[k], leftover_TA, weights_T1)
        return x_TA
