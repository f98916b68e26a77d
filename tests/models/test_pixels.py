"""Resizing and cutting as a network, against the image processor of transformers."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from models.networks import pixels
from models.networks.pixels import PixelsEngine, coefficients, first_pass
from runtime.image import BICUBIC, ImageConfig, PatchMaker, grid_of

# Height and width: down, up, each axis its own way, one axis alone, as it is, long, much smaller.
SIZES = [
    (256, 256),
    (480, 640),
    (113, 111),
    (111, 113),
    (112, 150),
    (150, 112),
    (112, 112),
    (20, 4000),
    (5, 9),
    (720, 1280),
]
LIMITS = [(1, 512 * 512), (56 * 56, 28 * 28 * 1280), (1, 252 * 252)]


def noise(height, width):
    return np.random.default_rng(height * width).integers(0, 256, (height, width, 3), np.uint8)


def extremes(height, width):
    """Black and white only: sums as large as they get, and overshoot on every edge."""
    random = np.random.default_rng(height * width)
    return 255 * random.integers(0, 2, (height, width, 3), np.uint8)


def run(engine, image):
    with torch.no_grad():
        return engine(torch.from_numpy(image)).numpy()


@pytest.mark.parametrize("limits", LIMITS)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("picture", [noise, extremes])
def test_patches_equal_those_of_transformers_bit_for_bit(picture, size, limits):
    config = ImageConfig(min_pixels=limits[0], max_pixels=limits[1])
    image = picture(*size)
    processor = Qwen2VLImageProcessorPil(min_pixels=limits[0], max_pixels=limits[1])
    want = processor(images=[Image.fromarray(image)], return_tensors="np")["pixel_values"]
    got = run(PixelsEngine(config, size, grid_of(*size, config)), image)
    assert got.dtype == np.float32
    assert np.array_equal(got, want)


@pytest.mark.parametrize(("num_in", "num_out"), [(64, 28), (28, 64), (256, 252), (17, 28), (9, 3)])
def test_every_coefficient_is_pillows(num_in, num_out):
    # Of a float image with one pixel of 1, Pillow gives the weights themselves, as float32; the
    # rounding to 22 bits is ours then. Half a unit of rounding, and float32's of the weight.
    for place in range(num_in):
        line = np.zeros((1, num_in), np.float32)
        line[0, place] = 1
        weights = np.asarray(Image.fromarray(line).resize((num_out, 1), BICUBIC))[0]
        error = coefficients(num_in, num_out)[:, place] - weights.astype(np.float64) * 2**22
        assert np.abs(error).max() <= 0.5 + 2**22 * 2**-24 * np.abs(weights).max()


@pytest.mark.parametrize("size", [(480, 640), (720, 1280)])
def test_factors_and_sums_are_exact_in_tensorfloat_32(size):
    config = ImageConfig(min_pixels=1, max_pixels=512 * 512)
    engine = PixelsEngine(config, size, grid_of(*size, config))
    for matrix, axis in ((engine.rows, 1), (engine.columns, 0)):
        whole = matrix.numpy().view(np.uint32)
        assert not (whole & (1 << 13) - 1).any()  # 10 bits behind the leading one
        assert 255 * np.abs(matrix.numpy().astype(np.int64)).sum(axis).max() + 2**21 < 2**24


def test_other_processors_are_followed():
    mean, std = (0.5, 0.4, 0.3), (0.25, 0.5, 0.125)
    fields = {"patch_size": 8, "merge_size": 3, "temporal_patch_size": 4, "rescale_factor": 1 / 127}
    config = ImageConfig(min_pixels=1, max_pixels=512**2, image_mean=mean, image_std=std, **fields)
    image = noise(70, 90)
    grid = grid_of(70, 90, config)
    want = np.empty((grid[0] * grid[1], config.patch_dim), np.float32)
    PatchMaker(config, grid)(image, want)
    assert np.array_equal(run(PixelsEngine(config, (70, 90), grid), image), want)


def test_an_image_that_shrinks_beyond_exact_sums_is_refused():
    config = ImageConfig(min_pixels=1, max_pixels=28 * 28)
    with pytest.raises(ValueError, match="resizing 3000 pixels to 28 takes sums that float32 does"):
        PixelsEngine(config, (3000, 3000), (2, 2))


def test_a_pillow_that_resizes_in_another_way_is_refused(monkeypatch):
    monkeypatch.setattr(pixels, "first_pass", lambda *sizes: None)
    config = ImageConfig(min_pixels=1, max_pixels=512**2)
    with pytest.raises(ValueError, match="does not resize one axis after the other: let the host"):
        PixelsEngine(config, (256, 256), (18, 18))


@pytest.fixture
def ask_pillow_again():
    first_pass.cache_clear()
    yield
    first_pass.cache_clear()


@pytest.mark.parametrize("order", ["horizontal", "vertical"])
@pytest.mark.parametrize("size", [(256, 240), (111, 113), (113, 111), (300, 90), (90, 300)])
def test_the_axis_that_pillow_takes_first_is_learned(ask_pillow_again, size, order, monkeypatch):
    """From a Pillow that always resizes along the same one first."""
    whole = Image.Image.resize

    def resize_ordered(self, size, *args):
        between = (size[0], self.height) if order == "horizontal" else (self.width, size[1])
        return whole(whole(self, between, *args), size, *args)

    monkeypatch.setattr(Image.Image, "resize", resize_ordered)
    assert first_pass(*size, 112, 112) == order


def test_a_pillow_that_does_not_resize_axis_by_axis_is_told(ask_pillow_again, monkeypatch):
    original = Image.Image.resize

    def brightened(self, size, *args):  # in each call, so twice in two passes
        return original(self, size, *args).point(lambda level: level // 2 + 1)

    monkeypatch.setattr(Image.Image, "resize", brightened)
    assert first_pass(100, 90, 84, 84) is None


def test_an_exact_size_is_one_resize_or_refused():
    exact = ImageConfig(min_pixels=1, max_pixels=512**2, size=(112, 168))
    picture = np.random.default_rng(0).integers(0, 256, (120, 90, 3), np.uint8)
    grid = grid_of(120, 90, exact)
    want = np.empty((grid[0] * grid[1], exact.patch_dim), np.float32)
    PatchMaker(exact, grid)(picture, want)
    assert np.array_equal(PixelsEngine(exact, (120, 90), grid)(torch.from_numpy(picture)), want)
    twice = ImageConfig(min_pixels=1, max_pixels=512**2, size=(100, 168))
    with pytest.raises(ValueError, match="100x168 and then to 112x168: let the host resize it"):
        PixelsEngine(twice, (120, 90), grid_of(120, 90, twice))


@pytest.mark.parametrize(
    "settings", [{"resample": "lanczos3"}, {"jpeg_quality": 95}, {"crop_area": 0.9}]
)
def test_what_is_done_as_tensorflow_does_it_is_left_to_the_host(settings):
    image = ImageConfig(min_pixels=1, max_pixels=512**2, size=(112, 168), **settings)
    with pytest.raises(ValueError, match=rf"\({next(iter(settings))}\), which engines do not: let"):
        PixelsEngine(image, (120, 90), (8, 12))
    assert PixelsEngine(replace(image, **dict.fromkeys(settings)), (120, 90), (8, 12))
