"""What the engines of Prismatic vision multiply and hold; see `models.networks.work`."""

from __future__ import annotations

from functools import partial

from models.networks.parts import LayersPerPart
from models.networks.prismatic_config import TOWERS, PrismaticVisionConfig
from models.networks.work import Layer, Work, attention_flops, layers_of, parts_work, transformer


def prismatic_depths(c: PrismaticVisionConfig) -> dict[str, int]:
    """Blocks of each tower that are run."""
    return {name: getattr(c, name).num_blocks for name in TOWERS}


def prismatic_work(c: PrismaticVisionConfig, layers: LayersPerPart) -> dict[str, Work]:
    """Of every engine, in the order of `prismatic_engines`."""
    found: dict[str, Work] = {}
    for name, depth in prismatic_depths(c).items():
        found |= parts_work(name, depth, layers, partial(tower_work, name, c))
    return found | {"projector": _projector(c)}


def tower_work(name: str, vision: PrismaticVisionConfig, blocks: range) -> Work:
    """Some blocks of a tower, one picture."""
    c = getattr(vision, name)
    num_patches, width = vision.num_patches, c.hidden_size
    rows, where = num_patches + c.num_prefix_tokens, f"vision_backbone.{name}"
    layers: list[Layer] = []
    beside, tables = (4 + 2 * c.layer_scale) * width * len(blocks), 0
    if blocks.start == 0:
        layers += layers_of({f"{where}.patch_embed.proj": (vision.patch_dim, width)}, num_patches)
        beside += rows * width
        if (c.image_mean, c.image_std) != (vision.image_mean, vision.image_std):
            tables = 2 * vision.patch_dim
    for index in blocks:
        block = transformer(f"{where}.blocks.{index}", width, c.intermediate_size)
        layers += layers_of(block, rows)
    scores = attention_flops(c.num_heads, rows, rows, width // c.num_heads)
    return Work(
        layers=tuple(layers),
        attention_flops=scores * len(blocks),
        largest_scores=c.num_heads * rows**2,
        beside=beside,
        tables=tables,
    )


def _projector(c: PrismaticVisionConfig) -> Work:
    shapes = {
        "projector.fc1": (c.embed_dim, 4 * c.embed_dim),
        "projector.fc2": (4 * c.embed_dim, c.out_hidden_size),
        "projector.fc3": (c.out_hidden_size, c.out_hidden_size),
    }
    return Work(layers=layers_of(shapes, c.num_patches), attention_flops=0, beside=0)
