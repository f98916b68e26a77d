"""Depth maps as patches, against torch and the definition; and where actions stand."""

import numpy as np
import pytest
import torch
from torch.nn import functional

from runtime.declarations import Input, Tensor
from runtime.depth import DepthPatchMaker
from runtime.errors import BundleError
from runtime.functions.calls import check_call, make_call
from runtime.functions.function import Resources
from runtime.graph import Graph, Stage
from runtime.image import ImageConfig, PatchMaker
from tests.graphs import leaves

IMAGE = {
    "min_pixels": 1,
    "max_pixels": 1 << 20,
    "patch_size": 4,
    "temporal_patch_size": 1,
    "merge_size": 1,
    "image_mean": [0.5, 0.25, 0.125],
    "image_std": [0.5, 0.25, 0.2],
    "size": [8, 12],
}
GRID = (2, 3)
PARAMS = {"grid": list(GRID), "image": IMAGE, "scale_m": 1.0, "missing": 0.0}
ULPS = 4 * 2.0**-24
"""tanh of numpy and of torch differ by an ulp or two of 1, and the deviation of 0.2 multiplies."""


def depth_map(size, seed=0):
    random = np.random.default_rng(seed)
    depth_m = random.uniform(0.1, 5, size).astype(np.float32)
    return np.where(random.random(size) < 0.2, np.float32(0), depth_m)


def patches(depth_m, **changes):
    image = {**IMAGE, **changes.pop("image", {})}
    out = np.full((6, 48 * image["temporal_patch_size"]), 7, np.float32)
    params = {**PARAMS, **changes, "image": image}
    call = make_call(
        Stage(name="s", function="depth_patches", params=params),
        Resources(tables={}, statistics={}),
    )
    call({"depth": depth_m}, {"patches": out})
    return out


GRID_PIXELS = (8, 12)


def pictured(depth_m, scale_m=1.0, missing=0.0):
    """[3, 8, 12] by the definition, normalised."""
    shown = torch.from_numpy(depth_m)[None, None]
    (near,) = functional.interpolate(shown, GRID_PIXELS, mode="nearest-exact")[0]
    near = torch.where(near > 0, 1 - torch.tanh(near / scale_m), torch.tensor(missing))
    mean, std = (torch.tensor(IMAGE[name])[:, None, None] for name in ("image_mean", "image_std"))
    return (near - mean) / std


@pytest.mark.parametrize("size", [(8, 12), (16, 36), (5, 7), (120, 160)])
@pytest.mark.parametrize(("scale_m", "missing"), [(1.0, 0.0), (2.5, 1.0)])
def test_depth_becomes_nearness_in_three_channels(size, scale_m, missing):
    depth_m = depth_map(size)
    want = pictured(depth_m, scale_m, missing)
    cut = want.unfold(1, 4, 4).unfold(2, 4, 4).permute(1, 2, 0, 3, 4).flatten(0, 1).flatten(1)
    got = patches(depth_m, scale_m=scale_m, missing=missing)
    assert np.abs(got - cut.numpy()).max() <= ULPS / 0.2


def test_patches_lie_as_those_of_pictures_do():
    """Also where patches merge and a picture stands for two frames."""
    settings = {"temporal_patch_size": 2, "merge_size": 2, "size": (8, 8), "min_pixels": 1}
    image = ImageConfig(**{**IMAGE, **settings})
    random = np.random.default_rng(1)
    levels = random.integers(0, 255, (8, 8), np.uint8)  # 255 would be 0 m, which is no depth
    near = levels / np.float32(255)
    want, got = np.empty((2, 4, image.patch_dim), np.float32)
    PatchMaker(image, (2, 2))(np.repeat(levels[..., None], 3, axis=2), want)
    make = DepthPatchMaker(image, (2, 2), scale_m=1.0, missing=0.0)
    make(np.arctanh(1 - near.astype(np.float64)).astype(np.float32), got)
    # 1 - tanh(atanh(1 - x)) is x but for an ulp of the depth, 6 m at most, and of its tanh.
    assert np.abs(got - want).max() <= 1e-5


def test_no_two_pixels_are_mixed_and_the_middle_is_cut_out():
    """By hand: of 100 columns, the middle half of the sides begins at column 25."""
    depth_m = np.broadcast_to(np.arange(1, 101, dtype=np.float32), (100, 100))
    make = DepthPatchMaker(
        ImageConfig(**{**IMAGE, "size": (8, 12), "crop_area": 0.25}), GRID, scale_m=30.0, missing=0
    )
    for count, near_NK in ((12, make.fitted(depth_m)), (8, make.fitted(depth_m.T).T)):
        at = 30 * np.arctanh(1 - near_NK.astype(np.float64))
        # Middles of so many columns over 50: 25 + 50 (i + 1/2) / count, cut off; pixel k holds
        # k + 1.
        want = np.floor(25 + 50 * (np.arange(count) + 0.5) / count) + 1
        assert np.abs(at - want).max() < 0.01 and at.shape[1] == count


def test_what_was_not_measured_is_far_or_near_as_is_said_and_nothing_else_is():
    depth_m = np.full((8, 12), 2, np.float32)
    depth_m[3, 5] = 0
    far = patches(depth_m).reshape(2, 3, 3, 4, 4)
    assert far[0, 1, :, 3, 1].tolist() == [-1.0, -1.0, -0.625]  # (0 - mean) / std
    near = patches(depth_m, missing=1.0).reshape(2, 3, 3, 4, 4)
    assert (far != near).sum() == 3


def test_what_is_nearer_or_farther_than_is_measured_well_was_not_measured():
    depth_m = np.full((8, 12), 1, np.float32)
    depth_m[0, :4] = 0.3, 0.29999, 4.0, 4.00001
    given = depth_m.copy()
    got = patches(depth_m, missing=1.0, range_m=[0.3, 4.0])
    depth_m[0, [1, 3]] = 0
    assert np.array_equal(got, patches(depth_m, missing=1.0))
    assert not np.array_equal(got, patches(given, missing=1.0))


def check(params, kind, shape, outputs):
    more = {
        "depth": {"source": "robot", "dtype": "float32", "pace": "tick"},
        "image": {"source": "robot", "dtype": "uint8", "pace": "tick"},
    }[kind]
    seen = Input(kind=kind, shape=shape, **more)
    stage = Stage(
        name="s",
        function="depth_patches",
        params=params,
        inputs={"depth": "seen"},
        outputs={port: f"out_{port}" for port in outputs},
    )
    tensors = {f"out_{port}": Tensor(shape=size) for port, size in outputs.items()}
    graph = Graph(
        inputs={"seen": seen}, outputs=leaves(next(iter(tensors))), tensors=tensors, stages=(stage,)
    )
    check_call(stage, graph)


@pytest.mark.parametrize(
    ("changes", "kind", "shape", "out", "words"),
    [
        ({"scale_m": 0.0}, "depth", (8, 12), (6, 48), "scale_m is 0.0, a finite number above 0"),
        ({"scale_m": float("nan")}, "depth", (8, 12), (6, 48), "scale_m is nan"),
        ({"missing": 1.5}, "depth", (8, 12), (6, 48), r"missing is 1.5, 0 \(far\) to 1 \(near\)"),
        ({"missing": -1.0}, "depth", (8, 12), (6, 48), "missing is -1.0"),
        ({"range_m": [2.0, 1.0]}, "depth", (8, 12), (6, 48), r"range_m is \[2.0, 1.0\], a nearest"),
        ({"range_m": [-0.1, 1.0]}, "depth", (8, 12), (6, 48), "range_m is "),
        ({}, "depth", (8, 12), (5, 48), r"'patches' is \[5, 48\], \[6, 48\] is wanted"),
        ({"grid": [0, 3]}, "depth", (8, 12), (6, 48), "a grid of 0x3 patches does not merge"),
        ({}, "image", (8, 12, 3), (6, 48), "port 'depth' takes depth, 'seen' is a image"),
        ({"missing": "far"}, "depth", (8, 12), (6, 48), "its params: "),
    ],
)
def test_a_call_that_makes_no_patches_of_depth_is_refused(changes, kind, shape, out, words):
    check(PARAMS, "depth", (8, 12), {"patches": (6, 48)})
    with pytest.raises(BundleError, match=words):
        check(PARAMS | changes, kind, shape, {"patches": out})
