"""What a network multiplies and holds, by arithmetic on its configuration alone.

In: a configuration, the grid of patches of an image, the tokens of a language call, and which
layers an engine has. Out: its linear layers under the policy's own names, with the vectors that
one call multiplies, FLOPs of the products between activations, and the numbers that lie beside
the layers. No module is built and no file is read: what `export.engines.counts` finds in the files
of an export is a second opinion. A multiplication and an addition are two FLOPs; what is no product
(norms, softmax, rotary positions, activation functions) is left out: some hundredths of the
arithmetic, which a compiler fuses.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial

from models.networks.config import (
    AnyLanguageConfig,
    AnyVisionConfig,
    MLPResNetConfig,
    Qwen3VisionConfig,
)
from models.networks.parts import LayersPerPart, cut
from models.networks.vision import window_layout
from models.policy_config import QwenPolicyConfig
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
    taps: int = 1
    """Vectors of its input that make one of its inputs: those of a convolution overlap, and lie in
    memory once."""

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
    """Numbers beside the layers, float32 in every recipe: norms, positions, single tokens, embedded
    steps."""
    calls: int = 1
    """In a warm tick."""
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
        rows = (x.rows * (2 * x.num_inputs // x.taps + x.num_outputs) for x in self.layers)
        return max(max(rows, default=0), 2 * self.largest_scores)

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
    def padded(cls, slots: int, calls: int = 2) -> Tokens:
        """What an engine of fixed shapes computes, whatever the prompt.

        Args:
            calls: that the prompt is read in.
        """
        return cls(new=slots, seen=calls * slots)


def vision_work(name: str, c: AnyVisionConfig, blocks: range, grid: tuple[int, int]) -> Work:
    """Some blocks of a vision tower, one image.

    Args:
        name: of the tower in the policy.
    """
    if isinstance(c, Qwen3VisionConfig):
        return _qwen3_vision_work(name, c, blocks, grid)
    rows = grid[0] * grid[1]
    width, head_width = c.hidden_size, c.hidden_size // c.num_heads
    merge = c.spatial_merge_size**2
    layers: list[Layer] = []
    beside, attention, scores = 2 * width * len(blocks), 0, 0
    tables = 2 * rows * head_width
    if blocks.start == 0:
        shapes = {f"{name}.patch_embed.proj": (c.patch_dim, width)}
        layers += layers_of(shapes, rows, has_bias=False)
    for index in blocks:
        block = f"{name}.blocks.{index}"
        shapes = {
            f"{block}.attn.qkv": (width, 3 * width),
            f"{block}.attn.proj": (width, width),
        }
        layers += layers_of(shapes | swiglu(f"{block}.mlp", width, c.intermediate_size), rows)
        whole = index in c.fullatt_block_indexes
        groups = ((1, rows),) if whole else window_layout(grid, c).groups
        attention += sum(
            attention_flops(windows * c.num_heads, size, size, head_width)
            for windows, size in groups
        )
        scores = max(scores, *(count * c.num_heads * size**2 for count, size in groups))
    if blocks.stop == c.depth:
        joined = width * merge
        merger = f"{name}.merger.mlp"
        shapes = {f"{merger}.0": (joined, joined), f"{merger}.2": (joined, c.out_hidden_size)}
        layers += layers_of(shapes, rows // merge)
        beside += width
    return Work(
        layers=tuple(layers),
        attention_flops=attention,
        largest_scores=scores,
        beside=beside,
        tables=tables,
    )


def _qwen3_vision_work(
    name: str, c: Qwen3VisionConfig, blocks: range, grid: tuple[int, int]
) -> Work:
    rows, width, merge = grid[0] * grid[1], c.hidden_size, c.spatial_merge_size**2
    joined, head_width = width * merge, c.hidden_size // c.num_heads
    layers: list[Layer] = []
    beside = 4 * width * len(blocks)
    if blocks.start == 0:  # and the embeddings of the grid's places
        layers += layers_of({f"{name}.patch_embed.proj": (c.patch_dim, width)}, rows)
        beside += rows * width
    for index in blocks:
        block = f"{name}.blocks.{index}"
        shapes = {
            f"{block}.attn.qkv": (width, 3 * width),
            f"{block}.attn.proj": (width, width),
            f"{block}.mlp.linear_fc1": (width, c.intermediate_size),
            f"{block}.mlp.linear_fc2": (c.intermediate_size, width),
        }
        layers += layers_of(shapes, rows)
    levels = [k for k, index in enumerate(c.deepstack_visual_indexes) if index in blocks]
    mergers = {f"{name}.deepstack_merger_list.{k}": joined for k in levels}
    if blocks.stop == c.depth:
        mergers[f"{name}.merger"] = width
    for merger, normed in mergers.items():
        shapes = {
            f"{merger}.linear_fc1": (joined, joined),
            f"{merger}.linear_fc2": (joined, c.out_hidden_size),
        }
        layers += layers_of(shapes, rows // merge)
        beside += 2 * normed
    return Work(
        layers=tuple(layers),
        attention_flops=attention_flops(c.num_heads, rows, rows, head_width) * len(blocks),
        largest_scores=c.num_heads * rows**2,
        beside=beside,
        tables=2 * rows * head_width,
    )


def language_work(name: str, c: AnyLanguageConfig, indices: range, tokens: Tokens) -> Work:
    """Some layers of a decoder, one call.

    Args:
        name: of the decoder in the policy.
    """
    width, q_width = c.hidden_size, c.num_attention_heads * c.head_dim
    kv_width = c.num_key_value_heads * c.head_dim
    layers: list[Layer] = []
    for index in indices:
        layer = f"{name}.layers.{index}"
        shapes = {
            f"{layer}.self_attn.q_proj": (width, q_width),
            f"{layer}.self_attn.k_proj": (width, kv_width),
            f"{layer}.self_attn.v_proj": (width, kv_width),
        }
        layers += layers_of(shapes, tokens.new, has_bias=c.qkv_bias)
        shapes = {f"{layer}.self_attn.o_proj": (q_width, width)}
        shapes |= swiglu(f"{layer}.mlp", width, c.intermediate_size)
        layers += layers_of(shapes, tokens.new, has_bias=False)
    one = attention_flops(c.num_attention_heads, tokens.new, tokens.seen, c.head_dim)
    norms = 2 * len(indices) + (indices.stop == c.num_hidden_layers)
    head_norms = 2 * len(indices) * c.qk_norm
    return Work(
        layers=tuple(layers),
        attention_flops=one * len(indices),
        largest_scores=c.num_attention_heads * tokens.new * tokens.seen,
        beside=norms * width + head_norms * c.head_dim,
    )


def qwen_depths(c: QwenPolicyConfig) -> dict[str, int]:
    """Layers of each trunk that may be cut, of a policy that has no other than these two."""
    return {"vision": c.vision.depth, "language": c.language.num_hidden_layers}


def qwen_trunk_work(
    c: QwenPolicyConfig, trunk: str, layers: range, grid: tuple[int, int], tokens: Tokens
) -> Work:
    """Some layers of a trunk in an engine of their own, with what stands before and behind them."""
    if trunk == "vision":
        return vision_work("vlm.visual", c.vision, layers, grid)
    return language_work("vlm.model", c.language, layers, tokens)


def qwen_trunks_work(
    c: QwenPolicyConfig, grid: tuple[int, int], tokens: Tokens, layers: LayersPerPart
) -> dict[str, Work]:
    """Of every engine of both."""
    found: dict[str, Work] = {}
    for trunk, depth in qwen_depths(c).items():
        work = partial(qwen_trunk_work, c, trunk, grid=grid, tokens=tokens)
        found |= parts_work(trunk, depth, layers, work)
    return found


def parts_work(
    trunk: str, depth: int, layers: LayersPerPart, work: Callable[[range], Work]
) -> dict[str, Work]:
    """Of every engine of a trunk of so many layers.

    Args:
        work: of some of its layers.
    """
    parts = cut(depth, layers.get(trunk))
    return {part_name(trunk, i, len(parts)): work(part) for i, part in enumerate(parts)}


def mlp_resnet_work(c: MLPResNetConfig, context: int, tokens: Tokens) -> Work:
    """The head that picks its rows off a call of the decoder, and makes actions of them.

    Args:
        context: width of the decoder.
    """
    width = c.hidden_size(context)
    name = "action_head.model"
    shapes = {f"{name}.fc1": (context, width)}
    shapes |= {f"{name}.mlp_resnet_blocks.{i}.ffn.1": (width, width) for i in range(c.num_blocks)}
    shapes[f"{name}.fc2"] = (width, c.action_dim)
    return Work(
        layers=layers_of(shapes, c.action_horizon),
        attention_flops=picking_flops(c.action_horizon, context, tokens),
        beside=2 * context + 2 * width * (c.num_blocks + 1),
    )


def picking_flops(rows: int, width: int, tokens: Tokens) -> int:
    """Of the matrix of zeros and ones that picks so many rows of a call."""
    return 2 * rows * tokens.new * width


def layers_of(
    shapes: Mapping[str, tuple[int, int]], rows: int, *, has_bias: bool = True
) -> tuple[Layer, ...]:
    """By name, inputs and outputs of each."""
    return tuple(
        Layer(name=name, num_inputs=k, num_outputs=n, rows=rows, has_bias=has_bias)
        for name, (k, n) in shapes.items()
    )


def convolution(name: str, width: int, out: int, rows: int, size: int) -> Layer:
    """A square one, of so many places of its output."""
    taps = size**2
    return Layer(name=name, num_inputs=taps * width, num_outputs=out, rows=rows, taps=taps)


def swiglu(name: str, width: int, hidden: int) -> dict[str, tuple[int, int]]:
    """A gated MLP's layers."""
    return {
        f"{name}.gate_proj": (width, hidden),
        f"{name}.up_proj": (width, hidden),
        f"{name}.down_proj": (hidden, width),
    }


def transformer(name: str, width: int, hidden: int) -> dict[str, tuple[int, int]]:
    """A block with one fused QKV projection and an MLP of two layers."""
    return {
        f"{name}.attn.qkv": (width, 3 * width),
        f"{name}.attn.proj": (width, width),
        f"{name}.mlp.fc1": (width, hidden),
        f"{name}.mlp.fc2": (hidden, width),
    }


def attention_flops(heads: int, queries: int, keys: int, head_width: int) -> int:
    """FLOPs of scores and of the sums of values."""
    return 2 * 2 * heads * queries * keys * head_width


def all_layers(works: Iterable[Work]) -> dict[str, Layer]:
    """By name; a layer that two engines hold is the one with more rows."""
    found: dict[str, Layer] = {}
    for layer in (layer for work in works for layer in work.layers):
        if layer.name not in found or found[layer.name].rows < layer.rows:
            found[layer.name] = layer
    return found
