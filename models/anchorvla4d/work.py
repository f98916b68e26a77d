"""What each engine of the policy multiplies and holds, by arithmetic on its configuration alone.

In: a configuration, the grid of patches of an image, the tokens of a language call, and which
layers an engine has. Out: its linear layers under the policy's own names, with the vectors that
one call multiplies, FLOPs of the products between activations, and the numbers that lie beside
the layers. No module is built and no file is read: what `export.engines.counts` finds in the files
of an export is a second opinion. A multiplication and an addition are two FLOPs; what is no product
(norms, softmax, rotary positions, activation functions) is left out: some hundredths of the
arithmetic, which a compiler fuses.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from models.anchorvla4d.config import PolicyConfig
from models.anchorvla4d.head import FREQUENCIES
from models.anchorvla4d.parts import WHOLE, LayersPerPart, cut
from models.anchorvla4d.spatial import NUM_VIEWS, mixes_views
from models.anchorvla4d.vision import window_layout
from runtime.graph import part_name


@dataclass(frozen=True, kw_only=True, slots=True)
class Layer:
    """A linear layer, as one call of an engine uses it."""

    name: str
    """In the policy, as recipes have it."""
    num_inputs: int
    num_outputs: int
    rows: int
    """Vectors that it multiplies."""
    has_bias: bool = True

    @property
    def num_weights(self) -> int:
        """Bias included."""
        return (self.num_inputs + self.has_bias) * self.num_outputs


@dataclass(frozen=True, kw_only=True, slots=True)
class Work:
    """Of one call of an engine."""

    layers: tuple[Layer, ...]
    attention_flops: int
    """Of products between activations: scores and sums of attention, pooling."""
    largest_scores: int = 0
    """Numbers of the largest matrix of attention scores."""
    beside: int
    """Numbers beside the layers, float32 in every recipe: norms, positions, the scale token, and
    in the condition the embedded steps."""
    tables: int = 0
    """Numbers that are computed at export and multiply activations in the base format."""

    @property
    def flops(self) -> int:
        """Of all products."""
        by_weights = sum(2 * x.rows * x.num_inputs * x.num_outputs for x in self.layers)
        return by_weights + self.attention_flops

    @property
    def scratch_numbers(self) -> int:
        """About what lives at once inside a call: a layer's input, its output and the residual, or
        scores before and after the softmax. A compiler may take less or more."""
        rows = (x.rows * (2 * x.num_inputs + x.num_outputs) for x in self.layers)
        return max(max(rows), 2 * self.largest_scores)

    @property
    def parameters(self) -> int:
        """Numbers that the engine holds, constants of its graph left out."""
        return sum(layer.num_weights for layer in self.layers) + self.beside


@dataclass(frozen=True, kw_only=True, slots=True)
class Tokens:
    """Of one call of the language engine."""

    new: int
    """That pass through its layers."""
    seen: int
    """That each of them attends to: cached ones and new ones."""

    @classmethod
    def padded(cls, slots: int) -> Tokens:
        """What an engine of fixed shapes computes, whatever the prompt."""
        return cls(new=slots, seen=2 * slots)


def engines_work(
    config: PolicyConfig,
    grid: tuple[int, int],
    tokens: Tokens,
    layers: LayersPerPart = WHOLE,
    samples: int = 1,
) -> dict[str, Work]:
    """Of every engine, under the names and in the order of `engines.engines_of`.

    Args:
        grid: rows and columns of patches of an image.
        tokens: of a language call. The condition pools over the new tokens of two such calls.
        samples: chunks that are denoised at once.
    """
    trunks = {
        "vision": (config.vision.depth, layers.vision),
        "language": (config.language.num_hidden_layers, layers.language),
        "spatial": (config.spatial.depth, layers.spatial),
    }
    found: dict[str, Work] = {}
    for trunk, (depth, per_part) in trunks.items():
        if trunk == "spatial":
            found["project"] = _project(config, grid)
        parts = cut(depth, per_part)
        for i, part in enumerate(parts):
            found[part_name(trunk, i, len(parts))] = trunk_work(config, trunk, part, grid, tokens)
    found["condition"] = _condition(config, grid, tokens)
    found["denoise"] = _denoise(config, samples)
    return found


def trunk_work(
    config: PolicyConfig, trunk: str, layers: range, grid: tuple[int, int], tokens: Tokens
) -> Work:
    """Some layers of a trunk in an engine of their own, with what stands before and behind them."""
    if trunk == "vision":
        return _vision(config, layers, grid)
    if trunk == "language":
        return _language(config, layers, tokens)
    return _spatial(config, layers, grid)


def folded_layers(config: PolicyConfig) -> tuple[Layer, ...]:
    """Those whose results are constants of an engine (`split.FOLDED`); no tick multiplies them."""
    width, steps = config.head.n_emb, config.head.num_inference_timesteps
    name = "action_head.t_embedder.mlp"
    return _layers({f"{name}.0": (FREQUENCIES, width), f"{name}.2": (width, width)}, steps)


def layer_names(config: PolicyConfig) -> list[str]:
    """Of every layer of the policy, for a recipe to decide about."""
    works = engines_work(config, _ANY_GRID, Tokens.padded(1)).values()
    layers = (*(layer for work in works for layer in work.layers), *folded_layers(config))
    return list(dict.fromkeys(layer.name for layer in layers))


_ANY_GRID = (2, 2)


def _vision(config: PolicyConfig, blocks: range, grid: tuple[int, int]) -> Work:
    c, rows = config.vision, grid[0] * grid[1]
    width, head_width = c.hidden_size, c.hidden_size // c.num_heads
    merge = c.spatial_merge_size**2
    layers: list[Layer] = []
    beside, attention, scores = 2 * width * len(blocks), 0, 0
    tables = 2 * rows * head_width
    if blocks.start == 0:
        name = "vlm.visual.patch_embed.proj"
        layers += _layers({name: (c.patch_dim, width)}, rows, has_bias=False)
    for index in blocks:
        name = f"vlm.visual.blocks.{index}"
        shapes = {
            f"{name}.attn.qkv": (width, 3 * width),
            f"{name}.attn.proj": (width, width),
        }
        layers += _layers(shapes | _swiglu(f"{name}.mlp", width, c.intermediate_size), rows)
        whole = index in c.fullatt_block_indexes
        groups = ((1, rows),) if whole else window_layout(grid, c).groups
        attention += sum(
            _attention(windows * c.num_heads, size, size, head_width) for windows, size in groups
        )
        scores = max(scores, *(count * c.num_heads * size**2 for count, size in groups))
    if blocks.stop == c.depth:
        joined = width * merge
        name = "vlm.visual.merger.mlp"
        shapes = {f"{name}.0": (joined, joined), f"{name}.2": (joined, c.out_hidden_size)}
        layers += _layers(shapes, rows // merge)
        beside += width
    return Work(
        layers=tuple(layers),
        attention_flops=attention,
        largest_scores=scores,
        beside=beside,
        tables=tables,
    )


def _language(config: PolicyConfig, indices: range, tokens: Tokens) -> Work:
    c = config.language
    width, kv_width = c.hidden_size, c.num_key_value_heads * c.head_dim
    layers: list[Layer] = []
    for index in indices:
        name = f"vlm.model.layers.{index}"
        shapes = {
            f"{name}.self_attn.q_proj": (width, width),
            f"{name}.self_attn.k_proj": (width, kv_width),
            f"{name}.self_attn.v_proj": (width, kv_width),
        }
        layers += _layers(shapes, tokens.new)
        shapes = {f"{name}.self_attn.o_proj": (width, width)}
        shapes |= _swiglu(f"{name}.mlp", width, c.intermediate_size)
        layers += _layers(shapes, tokens.new, has_bias=False)
    one = _attention(c.num_attention_heads, tokens.new, tokens.seen, c.head_dim)
    norms = 2 * len(indices) + (indices.stop == c.num_hidden_layers)
    return Work(
        layers=tuple(layers),
        attention_flops=one * len(indices),
        largest_scores=c.num_attention_heads * tokens.new * tokens.seen,
        beside=norms * width,
    )


def _project(config: PolicyConfig, grid: tuple[int, int]) -> Work:
    return Work(layers=(_patch_projection(config, grid[0] * grid[1]),), attention_flops=0, beside=0)


def _patch_projection(config: PolicyConfig, rows: int) -> Layer:
    return Layer(
        name="info_sharing.info_sharing.proj_embed",
        num_inputs=config.vision.patch_dim,
        num_outputs=config.spatial.dim,
        rows=rows,
    )


def _spatial(config: PolicyConfig, blocks: range, grid: tuple[int, int]) -> Work:
    c, patches = config.spatial, grid[0] * grid[1]
    width, hidden, head_width = c.dim, int(c.dim * c.mlp_ratio), c.dim // c.num_heads
    layers: list[Layer] = []
    beside, attention, scores = 2 * width * (2 * len(blocks) + 1), 0, 0
    if blocks.start == 0:  # the scale token goes through it, and the anchor's view is marked
        layers.append(_patch_projection(config, 1))
        beside += config.vision.patch_dim + width
    for index in blocks:
        name = f"info_sharing.info_sharing.self_attention_blocks.{index}"
        views = 1 if mixes_views(index) else NUM_VIEWS
        size = NUM_VIEWS * patches + 1 if mixes_views(index) else patches
        layers += _layers(_transformer(name, width, hidden), views * size)
        attention += _attention(views * c.num_heads, size, size, head_width)
        scores = max(scores, views * c.num_heads * size**2)
    return Work(
        layers=tuple(layers), attention_flops=attention, largest_scores=scores, beside=beside
    )


def _condition(config: PolicyConfig, grid: tuple[int, int], tokens: Tokens) -> Work:
    c, width = config.head, config.language.hidden_size
    num_spatial = grid[0] * grid[1] * NUM_VIEWS * (1 + len(config.spatial.indices))
    bins, pooled = c.adaptive_pool_dim, c.adaptive_pool_dim * width
    name = "info_sharing.final_projection"
    layers = [*_layers({name: (config.spatial.dim, width)}, bins)]
    shapes = {
        "action_head.state_linear": (c.state_dim, c.state_embed_dim),
        "action_head.combine.0": (pooled + c.state_embed_dim, c.combine_dim),
        "action_head.combine.2": (c.combine_dim, c.combine_dim),
        "action_head.combine.4": (c.combine_dim, width),
        "action_head.cond_obs_emb": (width, c.n_emb),
    }
    layers += _layers(shapes, 1)
    shapes = {
        f"action_head.blocks.{index}.adaLN_modulation.1": (c.n_emb, 6 * c.n_emb)
        for index in range(c.depth)
    }
    shapes["action_head.final_layer.adaLN_modulation.1"] = (c.n_emb, 2 * c.n_emb)
    layers += _layers(shapes, c.num_inference_timesteps)
    pooling = 2 * bins * (num_spatial * config.spatial.dim + 2 * tokens.new * width)
    return Work(
        layers=tuple(layers),
        attention_flops=pooling,
        beside=2 * pooled + c.num_inference_timesteps * c.n_emb,
    )


def _denoise(config: PolicyConfig, samples: int) -> Work:
    c = config.head
    width, rows, hidden = c.n_emb, c.prediction_horizon, int(c.n_emb * c.mlp_ratio)
    shapes = {"action_head.x_embedder": (c.action_dim, width)}
    for index in range(c.depth):
        shapes |= _transformer(f"action_head.blocks.{index}", width, hidden)
    shapes["action_head.final_layer.linear"] = (width, c.action_dim)
    attention = c.depth * _attention(c.num_heads, rows, rows, width // c.num_heads)
    return Work(
        layers=_layers(shapes, samples * rows),
        attention_flops=samples * attention,
        beside=rows * width,
    )


def _layers(
    shapes: Mapping[str, tuple[int, int]], rows: int, *, has_bias: bool = True
) -> tuple[Layer, ...]:
    return tuple(
        Layer(name=name, num_inputs=k, num_outputs=n, rows=rows, has_bias=has_bias)
        for name, (k, n) in shapes.items()
    )


def _swiglu(name: str, width: int, hidden: int) -> dict[str, tuple[int, int]]:
    return {
        f"{name}.gate_proj": (width, hidden),
        f"{name}.up_proj": (width, hidden),
        f"{name}.down_proj": (hidden, width),
    }


def _transformer(name: str, width: int, hidden: int) -> dict[str, tuple[int, int]]:
    """A block with one fused QKV projection and an MLP of two layers."""
    return {
        f"{name}.attn.qkv": (width, 3 * width),
        f"{name}.attn.proj": (width, width),
        f"{name}.mlp.fc1": (width, hidden),
        f"{name}.mlp.fc2": (hidden, width),
    }


def _attention(heads: int, queries: int, keys: int, head_width: int) -> int:
    """FLOPs of scores and of the sums of values."""
    return 2 * 2 * heads * queries * keys * head_width


def all_layers(works: Iterable[Work]) -> dict[str, Layer]:
    """By name; a layer that two engines hold is the one with more rows."""
    found: dict[str, Layer] = {}
    for layer in (layer for work in works for layer in work.layers):
        if layer.name not in found or found[layer.name].rows < layer.rows:
            found[layer.name] = layer
    return found
