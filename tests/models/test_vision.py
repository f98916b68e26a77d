"""The vision tower against transformers."""

import pytest
import torch

from models.anchorvla4d.presets import demo
from models.networks.vision import window_layout
from tests.oracles import FAINT, MODULE, normal, relative_error

CASES = [
    ("demo", (18, 18)),
    ("demo", (16, 16)),
    ("demo", (14, 22)),
    ("demo", (22, 14)),
    ("demo", (36, 36)),
    ("demo", (2, 2)),
    ("wide", (18, 18)),
    ("wide", (14, 22)),
    ("wide", (36, 36)),
]


@pytest.mark.parametrize(("name", "grid"), CASES)
@torch.no_grad()
def test_the_tower_equals_transformers(build, name, grid):
    pair = build(name)
    patches = normal(grid[0] * grid[1], pair.ours.config.vision.patch_dim)
    got = pair.ours.vlm.visual(patches, grid)
    want = pair.oracle.qwen.visual(patches, grid_thw=torch.tensor([[1, *grid]])).pooler_output
    assert relative_error(got, want) <= MODULE


@torch.no_grad()
def test_faint_patches_show_the_epsilon_of_the_norms(build):
    pair = build("demo")
    patches = FAINT * normal(18 * 18, pair.ours.config.vision.patch_dim)
    got = pair.ours.vlm.visual(patches, (18, 18))
    want = pair.oracle.qwen.visual(patches, grid_thw=torch.tensor([[1, 18, 18]])).pooler_output
    assert relative_error(got, want) <= MODULE


@torch.no_grad()
def test_two_images_in_one_batch_are_two_images(build):
    tower = build("demo").ours.vlm.visual
    both = normal(2, 18 * 18, 1176)
    assert relative_error(tower(both, (18, 18))[1], tower(both[1], (18, 18))) <= MODULE


def test_the_tests_above_have_windowed_and_full_blocks_and_three_sizes_of_window():
    config = demo().vision
    assert 0 < len(config.fullatt_block_indexes) < config.depth
    assert window_layout((36, 36), config).groups == ((16, 64), (8, 32), (1, 16))
    assert window_layout((14, 22), config).groups == ((2, 64), (3, 48), (1, 36))


@pytest.mark.parametrize("grid", [(17, 18), (18, 5), (0, 4)])
def test_a_grid_that_cannot_be_merged_is_refused(grid):
    with pytest.raises(ValueError, match=rf"multiples of 2 patches, got \({grid[0]}, {grid[1]}\)"):
        window_layout(grid, demo().vision)
