"""OpenVLA-OFT's regression head, as starVLA has it: one row of the decoder, one action.

Parameter names are the published ones (`action_model.*`). Oracle: the same composed of `torch.nn`
alone, in the family's `reference`.

Axes: T = action in the chunk, C = width of the decoder, A = action dimension.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

from models.networks.config import MLPResNetConfig


class MLPHead(nn.Module):
    def __init__(self, config: MLPResNetConfig, context_dim: int) -> None:
        """
        Args:
            context_dim: C.
        """
        super().__init__()
        self.model = MLPResNet(config, context_dim)

    def forward(self, rows_TC: Tensor) -> Tensor:
        """[..., T, C] of the action tokens -> [..., T, A] in policy units."""
        return self.model(rows_TC)


class MLPResNet(nn.Module):
    def __init__(self, config: MLPResNetConfig, context_dim: int) -> None:
        super().__init__()
        width = config.hidden_size(context_dim)
        self.layer_norm1 = nn.LayerNorm(context_dim)
        self.fc1 = nn.Linear(context_dim, width)
        self.mlp_resnet_blocks = nn.ModuleList(Block(width) for _ in range(config.num_blocks))
        self.layer_norm2 = nn.LayerNorm(width)
        self.fc2 = nn.Linear(width, config.action_dim)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(self.fc1(self.layer_norm1(x)))
        for block in self.mlp_resnet_blocks:
            x = block(x)
        return self.fc2(self.layer_norm2(x))


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.ffn = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        return x + self.ffn(x)
