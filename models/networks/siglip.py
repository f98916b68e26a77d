"""SigLIP and the pixel shuffle behind it: pictures as tokens of a language model, as SmolVLM has
them.

Patches pass through a vision transformer and its final norm; those of a square become one token.
Parameter names are the published ones. Oracles: `transformers` `SmolVLMVisionTransformer` and
`SmolVLMConnector`.

Axes: N = patches in raster order, M = tokens in raster order, D = width of the tower.
"""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor, nn
from torch.nn import functional

from models.networks.layers import GeluMLP, attend, merge_heads
from models.networks.siglip_config import SiglipVisionConfig

NORM_EPS = 1e-6


class SiglipTower(nn.Module):
    def __init__(self, config: SiglipVisionConfig) -> None:
        super().__init__()
        self.config = config
        self.embeddings = Embeddings(config)
        self.encoder = nn.ModuleDict(
            {"layers": nn.ModuleList(EncoderLayer(config) for _ in range(config.depth))}
        )
        self.post_layernorm = nn.LayerNorm(config.hidden_size, eps=NORM_EPS)

    @property
    def layers(self) -> nn.ModuleList:
        found = self.encoder["layers"]
        assert isinstance(found, nn.ModuleList)
        return found

    def forward(self, patches: Tensor) -> Tensor:
        """Normalised patches [..., N, patch_dim] -> [..., N, D]."""
        return self.post_layernorm(run_layers(self.layers, self.embeddings(patches)))


def run_layers(layers: Iterable[nn.Module], x: Tensor) -> Tensor:
    """Some layers in a row, [..., N, D]."""
    for layer in layers:
        x = layer(x)
    return x


class Embeddings(nn.Module):
    """A convolution whose stride is its kernel, a linear layer over flattened patches; and
    places."""

    def __init__(self, config: SiglipVisionConfig) -> None:
        super().__init__()
        size = config.patch_size
        self.patch_embedding = nn.Conv2d(3, config.hidden_size, size, stride=size)
        self.position_embedding = nn.Embedding(config.num_patches, config.hidden_size)

    def forward(self, patches: Tensor) -> Tensor:
        layer = self.patch_embedding
        rows = functional.linear(patches, layer.weight.flatten(1), layer.bias)
        return rows + self.position_embedding.weight


class EncoderLayer(nn.Module):
    def __init__(self, config: SiglipVisionConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.layer_norm1 = nn.LayerNorm(width, eps=NORM_EPS)
        self.self_attn = Attention(width, config.num_heads)
        self.layer_norm2 = nn.LayerNorm(width, eps=NORM_EPS)
        self.mlp = GeluMLP(width, config.intermediate_size, approximate="tanh")

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.self_attn(self.layer_norm1(x))
        return x + self.mlp(self.layer_norm2(x))


class Attention(nn.Module):
    """Of all patches to all, with a layer each for queries, keys and values."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.q_proj = nn.Linear(width, width)
        self.k_proj = nn.Linear(width, width)
        self.v_proj = nn.Linear(width, width)
        self.out_proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            layer(x).unflatten(-1, (self.num_heads, -1)).transpose(-3, -2)
            for layer in (self.q_proj, self.k_proj, self.v_proj)
        )
        return self.out_proj(merge_heads(attend(q, k, v)))


class Connector(nn.Module):
    """Patches as the tower sees them [..., N, D] -> tokens [..., M, width of the decoder]."""

    def __init__(self, config: SiglipVisionConfig) -> None:
        super().__init__()
        self.config = config
        layer = nn.Linear(config.shuffled_dim, config.out_hidden_size, bias=False)
        self.modality_projection = nn.ModuleDict({"proj": layer})

    def forward(self, seen: Tensor) -> Tensor:
        return self.modality_projection["proj"](pixel_shuffle(seen, self.config))


def pixel_shuffle(seen: Tensor, config: SiglipVisionConfig) -> Tensor:
    """[..., N, D] -> [..., M, s * s * D]: the patches of a token row by row."""
    side, scale = config.side // config.scale_factor, config.scale_factor
    squares = seen.unflatten(-2, (side, scale, side, scale)).transpose(-4, -3)
    return squares.flatten(-3).flatten(-3, -2)
