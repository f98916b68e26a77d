"""What each engine of SmolVLA multiplies and holds; see `models.networks.work`."""

from __future__ import annotations

from functools import partial

from models.networks.parts import WHOLE, LayersPerPart
from models.networks.work import (
    Layer,
    Tokens,
    Work,
    attention_flops,
    layers_of,
    parts_work,
    swiglu,
)
from models.smolvla.config import SmolVLAConfig

TOWER, TEXT, EXPERT = "vlm.visual", "vlm.model.layers", "action_head.layers"


def depths(config: SmolVLAConfig) -> dict[str, int]:
    """Layers of each trunk that may be cut."""
    return {"vision": config.vision.depth, "language": config.language.num_hidden_layers}


def engines_work(
    config: SmolVLAConfig,
    grid: tuple[int, int],
    tokens: Tokens,
    layers: LayersPerPart = WHOLE,
    samples: int = 1,
) -> dict[str, Work]:
    """Of every engine, under the names and in the order of `engines.engines_of`.

    Args:
        grid: rows and columns of patches, which are the tower's own.
        tokens: rows of pictures and text.
        samples: chunks that are sampled at once.
    """
    found: dict[str, Work] = {}
    for trunk, depth in depths(config).items():
        work = partial(trunk_work, config, trunk, grid=grid, tokens=tokens)
        found |= parts_work(trunk, depth, layers, work)
    crossed = layers_of(_cross_shapes(config), tokens.new, has_bias=False)
    found["cross_kv"] = Work(layers=crossed, attention_flops=0, beside=0)
    return found | {
        "state": _state(config, tokens),
        "euler": _euler(config, tokens, samples),
    }


def trunk_work(
    config: SmolVLAConfig, trunk: str, layers: range, grid: tuple[int, int], tokens: Tokens
) -> Work:
    """Some layers of a trunk in an engine of their own."""
    if trunk == "language":
        return _text(config, layers, tokens.new, tokens.new)
    return _tower(config, layers)


def folded_layers(config: SmolVLAConfig) -> tuple[Layer, ...]:
    """The time's half of it is a table, the action's half a matrix of its own."""
    c = config.head
    shapes = {"action_head.action_time_mlp_in": (2 * c.hidden_size, c.hidden_size)}
    return layers_of(shapes, c.num_inference_timesteps)


def _tower(config: SmolVLAConfig, indices: range) -> Work:
    c, rows = config.vision, config.vision.num_patches
    width = c.hidden_size
    layers: list[Layer] = []
    beside = 4 * width * len(indices)
    if indices.start == 0:
        shapes = {f"{TOWER}.embeddings.patch_embedding": (c.patch_dim, width)}
        layers += layers_of(shapes, rows)
        beside += rows * width
    for index in indices:
        layer = f"{TOWER}.encoder.layers.{index}"
        names = ("q_proj", "k_proj", "v_proj", "out_proj")
        shapes = {f"{layer}.self_attn.{name}": (width, width) for name in names}
        shapes[f"{layer}.mlp.fc1"] = (width, c.intermediate_size)
        shapes[f"{layer}.mlp.fc2"] = (c.intermediate_size, width)
        layers += layers_of(shapes, rows)
    if indices.stop == c.depth:
        beside += 2 * width
        shapes = {"vlm.connector.modality_projection.proj": (c.shuffled_dim, c.out_hidden_size)}
        layers += layers_of(shapes, c.num_tokens, has_bias=False)
    scores = attention_flops(c.num_heads, rows, rows, width // c.num_heads)
    return Work(
        layers=tuple(layers),
        attention_flops=scores * len(indices),
        largest_scores=c.num_heads * rows**2,
        beside=beside,
        calls=len(config.views),
    )


def _text(config: SmolVLAConfig, indices: range, rows: int, seen: int) -> Work:
    """Of the last layer there is no more than what makes keys and values."""
    c, width = config.language, config.language.hidden_size
    q_width, kv_width = c.num_attention_heads * c.head_dim, c.num_key_value_heads * c.head_dim
    whole = sum(index < c.num_hidden_layers - 1 for index in indices)
    layers: list[Layer] = []
    for index in indices:
        layer = f"{TEXT}.{index}"
        shapes = {f"{layer}.self_attn.{name}_proj": (width, kv_width) for name in "kv"}
        if index < c.num_hidden_layers - 1:
            shapes[f"{layer}.self_attn.q_proj"] = (width, q_width)
            shapes[f"{layer}.self_attn.o_proj"] = (q_width, width)
            shapes |= swiglu(f"{layer}.mlp", width, c.intermediate_size)
        layers += layers_of(shapes, rows, has_bias=False)
    return Work(
        layers=tuple(layers),
        attention_flops=attention_flops(c.num_attention_heads, rows, seen, c.head_dim) * whole,
        largest_scores=c.num_attention_heads * rows * seen * bool(whole),
        beside=width * (len(indices) + whole),
    )


def _cross_shapes(config: SmolVLAConfig) -> dict[str, tuple[int, int]]:
    """Layers of the expert that project the language model's keys and values."""
    kv_width = config.language.num_key_value_heads * config.language.head_dim
    return {
        f"{EXPERT}.{index}.self_attn.{name}_proj": (kv_width, kv_width)
        for index in range(config.language.num_hidden_layers)
        if config.head.is_cross(index)
        for name in "kv"
    }


def _state(config: SmolVLAConfig, tokens: Tokens) -> Work:
    c = config.language
    text = _text(config, range(c.num_hidden_layers), 1, tokens.new + 1)
    shapes = {"state_proj": (config.head.max_state_dim, c.hidden_size)}
    crossed = layers_of(_cross_shapes(config), 1, has_bias=False)
    return Work(
        layers=(*layers_of(shapes, 1), *text.layers, *crossed),
        attention_flops=text.attention_flops,
        largest_scores=text.largest_scores,
        beside=text.beside,
    )


def _euler(config: SmolVLAConfig, tokens: Tokens, samples: int) -> Work:
    c, text = config.head, config.language
    width, rows, given = c.hidden_size, samples * c.action_horizon, tokens.new + 1
    heads, head_dim = text.num_attention_heads, text.head_dim
    q_width, kv_width = heads * head_dim, text.num_key_value_heads * head_dim
    layers = [
        *layers_of({"action_head.action_in_proj": (c.max_action_dim, width)}, rows),
        # What the time's half makes of it is a table, with the bias.
        *layers_of({"action_head.action_time_mlp_in": (width, width)}, rows, has_bias=False),
        *layers_of({"action_head.action_time_mlp_out": (width, width)}, rows),
    ]
    attention, scores = 0, 0
    for index in range(text.num_hidden_layers):
        layer, keys = f"{EXPERT}.{index}", given
        shapes = {f"{layer}.self_attn.q_proj": (width, q_width)}
        if not c.is_cross(index):
            shapes |= {f"{layer}.self_attn.{name}_proj": (width, kv_width) for name in "kv"}
            keys += c.action_horizon
        shapes[f"{layer}.self_attn.o_proj"] = (q_width, width)
        shapes |= swiglu(f"{layer}.mlp", width, c.intermediate_size)
        layers += layers_of(shapes, rows, has_bias=False)
        attention += attention_flops(samples * heads, c.action_horizon, keys, head_dim)
        scores = max(scores, samples * heads * c.action_horizon * keys)
    layers += layers_of({"action_head.action_out_proj": (width, c.max_action_dim)}, rows)
    return Work(
        layers=tuple(layers),
        attention_flops=attention,
        largest_scores=scores,
        beside=width * (2 * text.num_hidden_layers + 1),
        calls=c.num_inference_timesteps,
        tables=2 * c.action_horizon * head_dim,
    )
