"""Pictures in a letterbox are what torch makes of them."""

import numpy as np
import pytest
import torch
from torch.nn import functional

from models.networks.pixels import PixelsEngine
from models.networks.transformers_qwen import image_processor
from models.processor import image_fields
from runtime.image import ImageConfig, PatchMaker, grid_of

SHIFT = 2**-24
"""A rounding of a number up to 1. Torch adds four products and here two pairs are taken, so that
some ten roundings differ; places along an axis do not, since both round them once."""
SIZES = [
    (120, 160),
    (480, 640),
    (640, 480),
    (97, 61),
    (64, 64),
    (30, 64),
    (150, 3),
    (1, 9),
    (721, 1281),
]


def settings(side, **changes):
    given = {
        "min_pixels": 1, "max_pixels": side**2, "patch_size": side // 4, "size": (side, side),
        "temporal_patch_size": 1, "merge_size": 1, "image_mean": (0.5,) * 3,
        "image_std": (0.5,) * 3, "letterbox": "top_left",
    }  # fmt: skip
    return ImageConfig(**{**given, **changes})


def by_torch(image, side):
    """[side, side, 3] from -1 to 1, step by step as LeRobot does it."""
    pixels = torch.from_numpy(image).permute(2, 0, 1)[None].float() / 255
    height, width = pixels.shape[2:]
    if (height, width) != (side, side):
        ratio = max(width / side, height / side)
        inner = int(height / ratio), int(width / ratio)
        pixels = functional.interpolate(pixels, size=inner, mode="bilinear", align_corners=False)
        pixels = functional.pad(pixels, (side - inner[1], 0, side - inner[0], 0), value=0)
    return (pixels * 2 - 1)[0].permute(1, 2, 0).numpy()


@pytest.mark.parametrize("side", [64, 512])
@pytest.mark.parametrize("size", SIZES)
def test_patches_are_torch_s(size, side):
    image = np.random.default_rng(sum(size)).integers(0, 256, (*size, 3), np.uint8)
    config, cut = settings(side), side // 4
    assert grid_of(*size, config) == (4, 4)
    got = np.full((16, config.patch_dim), np.nan, np.float32)
    PatchMaker(config, (4, 4))(image, got)
    whole = by_torch(image, side).reshape(4, cut, 4, cut, 3).transpose(0, 2, 4, 1, 3)
    assert np.abs(got - whole.reshape(16, -1)).max() <= 16 * SHIFT


def test_what_is_left_is_black_above_and_on_the_left():
    bright = np.full((32, 64, 3), 255, np.uint8)
    bright[0, 0] = 254
    maker = PatchMaker(settings(64), (4, 4))
    wide, tall = maker.fitted(bright), maker.fitted(bright.transpose(1, 0, 2))
    assert not wide[:32].any() and (wide[32:] > 253).all()
    assert not tall[:, :32].any() and (tall[:, 32:] > 253).all()
    assert maker.fitted(np.tile(bright, (2, 1, 1))).dtype == np.uint8, "of that size: as it is"


def test_the_picture_that_is_given_stays_as_it_is():
    image = np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8)
    before = image.copy()
    PatchMaker(settings(64), (4, 4)).fitted(image)
    assert (image == before).all()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"letterbox": "center"}, "letterbox must be 'top_left' or left out, got 'center'"),
        ({"size": None}, "letterbox needs size"),
        ({"resample": "lanczos3"}, "resample and letterbox exclude each other"),
        ({"jpeg_quality": 95}, "jpeg_quality and letterbox exclude each other"),
        ({"max_pixels": 32**2}, "letterbox makes images of 64x64, which would be resized again"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(changes, said):
    with pytest.raises(ValueError, match=said):
        settings(64, **changes)


def test_what_cannot_do_it_says_so():
    with pytest.raises(ValueError, match=r"as torch does it \(letterbox\), which engines do not"):
        PixelsEngine(settings(64), (120, 160), (4, 4))
    with pytest.raises(ValueError, match="does not know letterbox"):
        image_processor(settings(64))


def test_a_setting_that_is_not_stated_is_not_written():
    assert image_fields(settings(64))["letterbox"] == "top_left"
    assert "letterbox" not in image_fields(settings(64, letterbox=None))
