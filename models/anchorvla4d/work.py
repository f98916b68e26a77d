"""What each engine of AnchorVLA4D multiplies and holds; see `models.networks.work`."""

from __future__ import annotations

from functools import partial

from models.anchorvla4d.config import AnchorVLA4DConfig
from models.networks.parts import WHOLE, LayersPerPart
from models.networks.readouts import readout_work
from models.networks.scale_dp import FREQUENCIES
from models.networks.spatial import mixes_views
from models.networks.work import (
    Layer,
    Tokens,
    Work,
    attention_flops,
    language_work,
    layers_of,
    parts_work,
    transformer,
    vision_work,
)


def depths(config: AnchorVLA4DConfig) -> dict[str, int]:
    """Layers of each trunk that may be cut."""
    return {
        "vision": config.vision.depth,
        "language": config.language.num_hidden_layers,
        "spatial": config.spatial.depth,
    }


def engines_work(
    config: AnchorVLA4DConfig,
    grid: tuple[int, int],
    tokens: Tokens,
    layers: LayersPerPart = WHOLE,
    samples: int = 1,
) -> dict[str, Work]:
    """Of every engine, under the names and in the order of `engines.engines_of`.

    Args:
        grid: rows and columns of patches of an image.
        tokens: of a language call. The condition pools over the new tokens of one such call for
            each view.
        samples: chunks that are denoised at once.
    """
    found: dict[str, Work] = {}
    for trunk, depth in depths(config).items():
        if trunk == "spatial":
            found["project"] = _project(config, grid)
        work = partial(trunk_work, config, trunk, grid=grid, tokens=tokens)
        found |= parts_work(trunk, depth, layers, work)
    found["condition"] = _condition(config, grid, tokens)
    found["denoise"] = _denoise(config, samples)
    return found | readout_work(
        config.readouts, "readouts", tokens.new, config.language.hidden_size
    )


def trunk_work(
    config: AnchorVLA4DConfig, trunk: str, layers: range, grid: tuple[int, int], tokens: Tokens
) -> Work:
    """Some layers of a trunk in an engine of their own, with what stands before and behind them."""
    if trunk == "vision":
        return vision_work("vlm.visual", config.vision, layers, grid)
    if trunk == "language":
        return language_work("vlm.model", config.language, layers, tokens)
    return _spatial(config, layers, grid)


def folded_layers(config: AnchorVLA4DConfig) -> tuple[Layer, ...]:
    """Those that no engine holds: their results are constants of one, no tick multiplies them."""
    width, steps = config.head.n_emb, config.head.num_inference_timesteps
    name = "action_head.t_embedder.mlp"
    return layers_of({f"{name}.0": (FREQUENCIES, width), f"{name}.2": (width, width)}, steps)


def _project(config: AnchorVLA4DConfig, grid: tuple[int, int]) -> Work:
    return Work(layers=(_patch_projection(config, grid[0] * grid[1]),), attention_flops=0, beside=0)


def _patch_projection(config: AnchorVLA4DConfig, rows: int) -> Layer:
    return Layer(
        name="info_sharing.info_sharing.proj_embed",
        num_inputs=config.vision.patch_dim,
        num_outputs=config.spatial.dim,
        rows=rows,
    )


def _spatial(config: AnchorVLA4DConfig, blocks: range, grid: tuple[int, int]) -> Work:
    c, patches = config.spatial, grid[0] * grid[1]
    width, hidden, head_width = c.dim, int(c.dim * c.mlp_ratio), c.dim // c.num_heads
    layers: list[Layer] = []
    beside, attention, scores = 2 * width * (2 * len(blocks) + 1), 0, 0
    if blocks.start == 0:  # the scale token goes through it, and the anchor's view is marked
        layers.append(_patch_projection(config, 1))
        beside += config.vision.patch_dim + width
    for index in blocks:
        name = f"info_sharing.info_sharing.self_attention_blocks.{index}"
        views = 1 if mixes_views(index) else len(config.views)
        size = len(config.views) * patches + 1 if mixes_views(index) else patches
        layers += layers_of(transformer(name, width, hidden), views * size)
        attention += attention_flops(views * c.num_heads, size, size, head_width)
        scores = max(scores, views * c.num_heads * size**2)
    return Work(
        layers=tuple(layers), attention_flops=attention, largest_scores=scores, beside=beside
    )


def _condition(config: AnchorVLA4DConfig, grid: tuple[int, int], tokens: Tokens) -> Work:
    c, width = config.head, config.language.hidden_size
    num_spatial = grid[0] * grid[1] * len(config.views) * (1 + len(config.spatial.indices))
    bins, pooled = c.adaptive_pool_dim, c.adaptive_pool_dim * width
    name = "info_sharing.final_projection"
    layers = [*layers_of({name: (config.spatial.dim, width)}, bins)]
    shapes = {
        "action_head.state_linear": (c.state_dim, c.state_embed_dim),
        "action_head.combine.0": (pooled + c.state_embed_dim, c.combine_dim),
        "action_head.combine.2": (c.combine_dim, c.combine_dim),
        "action_head.combine.4": (c.combine_dim, width),
        "action_head.cond_obs_emb": (width, c.n_emb),
    }
    layers += layers_of(shapes, 1)
    shapes = {
        f"action_head.blocks.{index}.adaLN_modulation.1": (c.n_emb, 6 * c.n_emb)
        for index in range(c.depth)
    }
    shapes["action_head.final_layer.adaLN_modulation.1"] = (c.n_emb, 2 * c.n_emb)
    layers += layers_of(shapes, c.num_inference_timesteps)
    num_tokens = len(config.views) * tokens.new
    pooling = 2 * bins * (num_spatial * config.spatial.dim + num_tokens * width)
    return Work(
        layers=tuple(layers),
        attention_flops=pooling,
        beside=2 * pooled + c.num_inference_timesteps * c.n_emb,
    )


def _denoise(config: AnchorVLA4DConfig, samples: int) -> Work:
    c = config.head
    width, rows, hidden = c.n_emb, c.prediction_horizon, int(c.n_emb * c.mlp_ratio)
    shapes = {"action_head.x_embedder": (c.action_dim, width)}
    for index in range(c.depth):
        shapes |= transformer(f"action_head.blocks.{index}", width, hidden)
    shapes["action_head.final_layer.linear"] = (width, c.action_dim)
    attention = c.depth * attention_flops(c.num_heads, rows, rows, width // c.num_heads)
    return Work(
        layers=layers_of(shapes, samples * rows),
        attention_flops=samples * attention,
        calls=c.num_inference_timesteps,
        beside=rows * width,
    )
