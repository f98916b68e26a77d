"""Qwen3-VL's vision tower, whole and in engines, against transformers and torch."""

import copy
import dataclasses

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional
from transformers.models.auto.image_processing_auto import IMAGE_PROCESSOR_MAPPING_NAMES

from models.networks.engines import vision_engines
from models.networks.qwen3_vision import grid_positions
from models.networks.transformers_qwen import image_processor
from models.networks.vision_language import VisionLanguage
from models.stored import StoredTensor, put
from tests.oracles import FAINT, MODULE, normal, patches_of, relative_error
from tests.qwen3 import IMAGE, pair_of, small

GRIDS = [(14, 14), (14, 22), (22, 10), (2, 2), (2, 30), (6, 8)]
CASES = [*(("small", grid) for grid in GRIDS), ("wide", (18, 18)), ("wide", (16, 10))]


def by_transformers(pair, patches, grid):
    seen = pair.oracle.visual(patches, grid_thw=torch.tensor([[1, *grid]]))
    return [seen.pooler_output, *seen.deepstack_features]


def chain(specs, patches):
    """The outputs of engines in a row, by port."""
    x, made = patches, {}
    for spec in specs.values():
        made |= dict(zip(spec.outputs, spec.module(x), strict=True))
        x = made.get("x_next")
    del made["x_next"]
    return made


@pytest.mark.parametrize(("name", "grid"), CASES)
@torch.no_grad()
def test_tokens_and_levels_equal_those_of_transformers(qwen3, name, grid):
    pair = qwen3(name)
    patches = normal(grid[0] * grid[1], pair.vision.patch_dim)
    got, want = pair.ours.visual(patches, grid), by_transformers(pair, patches, grid)
    assert len(got) == len(want) == 3
    for one, other in zip(got, want, strict=True):
        assert relative_error(one, other) <= MODULE


@torch.no_grad()
def test_faint_patches_show_the_epsilon_of_the_norms():
    pair = pair_of(small())
    for tensor in (pair.ours.visual.patch_embed.proj.bias, pair.ours.visual.pos_embed.weight):
        tensor.mul_(FAINT)  # of both: they share it
    for block in pair.ours.visual.blocks:
        for layer in (block.attn.proj, block.mlp.linear_fc2):
            layer.weight.mul_(FAINT)
            layer.bias.mul_(FAINT)
    patches = FAINT * normal(14 * 10, pair.vision.patch_dim)
    got, want = pair.ours.visual(patches, (14, 10)), by_transformers(pair, patches, (14, 10))
    for one, other in zip(got, want, strict=True):
        assert relative_error(one, other) <= MODULE


@torch.no_grad()
def test_two_images_in_one_batch_are_two_images(qwen3):
    tower = qwen3("small").ours.visual
    both = normal(2, 6 * 8, tower.config.patch_dim)
    for batch, alone in zip(tower(both, (6, 8)), tower(both[1], (6, 8)), strict=True):
        assert relative_error(batch[1], alone) <= MODULE


@pytest.mark.parametrize("grid", [*GRIDS, (48, 48), (64, 20)])
def test_positions_are_interpolated_as_torch_does_it(grid):
    """transformers' own way of it stands behind the tests above."""
    side = 48 if grid in ((48, 48), (64, 20)) else 7
    config = dataclasses.replace(small()[0], num_position_embeddings=side**2)
    table = normal(side**2, 5)
    square = table.unflatten(0, (side, side)).permute(2, 0, 1)[None]
    whole = functional.interpolate(square, grid, mode="bilinear", align_corners=True)[0]
    blocks = whole.permute(1, 2, 0).unflatten(1, (-1, 2)).unflatten(0, (-1, 2))
    want = blocks.transpose(1, 2).reshape(-1, 5)
    got = grid_positions(table, grid, config)
    assert got.dtype == torch.float32
    # A place of up to 47 is off by 47 * 2^-24 in float32, and its neighbours differ by some units.
    assert (got - want).abs().max() <= 2e-5
    assert relative_error(got, want) <= 3e-6


@pytest.mark.parametrize("grid", [(17, 18), (18, 5), (0, 4)])
def test_a_grid_that_cannot_be_merged_is_refused(qwen3, grid):
    with pytest.raises(ValueError, match=rf"multiples of 2 patches, got \({grid[0]}, {grid[1]}\)"):
        vision_engines(qwen3("small").ours.visual, grid)


@pytest.mark.parametrize("per_part", [None, 1, 2, 3])
@torch.no_grad()
def test_engines_make_what_the_tower_makes(qwen3, per_part):
    pair = qwen3("small")
    specs = vision_engines(pair.ours.visual, (6, 8), per_part)
    patches = normal(6 * 8, pair.vision.patch_dim)
    made = chain(specs, patches) if per_part else None
    if made is None:
        (spec,) = specs.values()
        made = dict(zip(spec.outputs, spec.module(patches), strict=True))
    assert made.keys() == {"tokens", "deepstack_0", "deepstack_1"}
    want = by_transformers(pair, patches, (6, 8))
    for port, other in zip(("tokens", "deepstack_0", "deepstack_1"), want, strict=True):
        assert relative_error(made[port], other) <= MODULE
    shapes = {port: t.shape for spec in specs.values() for port, t in spec.outputs.items()}
    assert all(shapes[port] == tuple(made[port].shape) for port in made)


def test_a_level_leaves_the_part_that_holds_its_block(qwen3):
    specs = vision_engines(qwen3("small").ours.visual, (6, 8), 1)
    assert [list(spec.inputs) for spec in specs.values()] == [["patches"], ["x"], ["x"], ["x"]]
    assert [list(spec.outputs) for spec in specs.values()] == [
        ["x_next", "deepstack_0"],
        ["x_next"],
        ["x_next", "deepstack_1"],
        ["tokens"],
    ]


@torch.no_grad()
def test_positions_of_a_tower_on_disk_are_those_of_one_in_memory(qwen3):
    tower = qwen3("small").ours.visual
    lazy = copy.deepcopy(tower)
    for name, tensor in tower.state_dict().items():
        put(lazy, name, StoredTensor(tensor.shape, torch.float32, lambda t=tensor: t))
    positions = [vision_engines(t, (6, 8))["vision"].module.positions for t in (tower, lazy)]
    assert torch.equal(*positions)
    patches = normal(6 * 8, tower.config.patch_dim)
    for one, other in zip(tower(patches, (6, 8)), lazy(patches, (6, 8)), strict=True):
        assert torch.equal(one, other)


def test_engines_have_their_ports_without_weights():
    with torch.device("meta"):
        tower = VisionLanguage(*small()).visual
    (spec,) = vision_engines(tower, (6, 8)).values()
    assert spec.module.positions.is_meta
    assert spec.outputs["deepstack_1"].shape == (12, 80)


@torch.no_grad()
def test_a_tower_without_levels_makes_tokens_alone(qwen3):
    vision, language = small()
    pair = pair_of((dataclasses.replace(vision, deepstack_visual_indexes=()), language))
    patches = normal(6 * 8, vision.patch_dim)
    (got,), (want,) = pair.ours.visual(patches, (6, 8)), by_transformers(pair, patches, (6, 8))
    assert relative_error(got, want) <= MODULE
    assert list(vision_engines(pair.ours.visual, (6, 8))["vision"].outputs) == ["tokens"]


@pytest.mark.parametrize("size", [(112, 112), (96, 160), (100, 75)])
def test_patches_are_those_of_the_processor_that_transformers_gives_it(size):
    named = IMAGE_PROCESSOR_MAPPING_NAMES["qwen3_vl"]
    processor = image_processor(IMAGE)
    assert type(processor).__name__ in named.values()
    picture = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    want = processor(images=[Image.fromarray(picture)], return_tensors="np")
    assert np.array_equal(patches_of(picture, IMAGE).numpy(), want["pixel_values"])
    assert want["pixel_values"].shape[1] == small()[0].patch_dim
