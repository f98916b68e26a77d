"""Preprocessing against the Pillow image processor of transformers, bit for bit."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from runtime.errors import ObservationError
from runtime.image import (
    ImageConfig,
    PatchMaker,
    check_image,
    grid_of,
    resized_shape,
    similarity,
)

# Height and width: right already, down, up, odd, one dimension at a time, extreme, tiny.
SIZES = [
    (112, 112),
    (252, 252),
    (256, 256),
    (480, 640),
    (720, 1280),
    (224, 308),
    (100, 100),
    (113, 111),
    (28, 1500),
    (3000, 17),
    (20, 4000),
    (5, 9),
    (14, 14),
    (600, 600),
]
LIMITS = [(1, 512 * 512), (56 * 56, 28 * 28 * 1280), (224 * 224, 224 * 224), (1, 28 * 28)]


def noise(height, width):
    return np.random.default_rng(height * width).integers(0, 256, (height, width, 3), np.uint8)


def gradient(height, width):
    """A smooth picture, as cameras give them."""
    layers = [Image.linear_gradient("L"), Image.radial_gradient("L")]
    layers.append(layers[0].rotate(90))
    return np.asarray(Image.merge("RGB", [g.resize((width, height)) for g in layers]))


@pytest.mark.parametrize("limits", LIMITS)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("picture", [noise, gradient])
def test_patches_equal_those_of_transformers_bit_for_bit(picture, size, limits):
    config = ImageConfig(min_pixels=limits[0], max_pixels=limits[1])
    image = picture(*size)
    processor = Qwen2VLImageProcessorPil(min_pixels=limits[0], max_pixels=limits[1])
    want = processor(images=[Image.fromarray(image)], return_tensors="np")
    grid = grid_of(*size, config)
    assert [1, *grid] == want["image_grid_thw"][0].tolist()
    got = np.full((grid[0] * grid[1], config.patch_dim), np.nan, np.float32)
    PatchMaker(config, grid)(image, got)
    assert want["pixel_values"].dtype == np.float32
    assert np.array_equal(got, want["pixel_values"])


@pytest.mark.parametrize("exact", [(112, 112), (112, 168), (256, 256), (100, 224)])
@pytest.mark.parametrize("seen", [(112, 112), (480, 640), (112, 168), (60, 90)])
def test_an_exact_size_goes_before_the_rule_whatever_the_aspect(exact, seen):
    """As starVLA resizes a picture and then gives it to the processor."""
    config = ImageConfig(min_pixels=1, max_pixels=512**2, size=exact)
    height, width = exact
    processor = Qwen2VLImageProcessorPil(min_pixels=1, max_pixels=512**2)
    resized = Image.fromarray(noise(*seen)).resize((width, height))
    want = processor(images=[resized], return_tensors="np")
    grid = grid_of(*seen, config)
    assert [1, *grid] == want["image_grid_thw"][0].tolist()
    got = np.empty((grid[0] * grid[1], config.patch_dim), np.float32)
    PatchMaker(config, grid)(noise(*seen), got)
    assert np.array_equal(got, want["pixel_values"])


@pytest.mark.parametrize("size", [224, (224,), (224, 0), (224.0, 224), (True, 224), (1, 2, 3)])
def test_an_exact_size_that_is_none_is_refused(size):
    with pytest.raises(ValueError, match="size must be height and width, whole numbers from 1"):
        ImageConfig(min_pixels=1, max_pixels=9, size=size)


def test_an_image_that_needs_no_resize_is_read_however_it_lies_in_memory():
    config = ImageConfig(min_pixels=1, max_pixels=512**2)
    image = noise(224, 168)[::2, ::-1][:, ::3]
    image.setflags(write=False)
    got, want = np.empty((2, 8 * 4, config.patch_dim), np.float32)
    PatchMaker(config, (8, 4))(image, got)
    PatchMaker(config, (8, 4))(np.ascontiguousarray(image), want)
    assert np.array_equal(got, want)


def test_threads_may_share_a_patch_maker():
    config = ImageConfig(min_pixels=1, max_pixels=512**2)
    make = PatchMaker(config, (8, 8))
    images = [noise(*size) for size in ((112, 112), (120, 110), (110, 120), (112, 113))] * 8
    got = np.empty((len(images), 64, config.patch_dim), np.float32)
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(make, images, got))
    for image, patches in zip(images, got, strict=True):
        want = Qwen2VLImageProcessorPil(min_pixels=1, max_pixels=512**2)(
            images=[Image.fromarray(image)], return_tensors="np"
        )["pixel_values"]
        assert np.array_equal(patches, want)


@pytest.mark.parametrize("factor", [1 / 127.5, 0.1, 1 / 256, 3.0])
def test_other_rescale_factors_are_followed(factor):
    config = ImageConfig(min_pixels=1, max_pixels=512**2, rescale_factor=factor)
    processor = Qwen2VLImageProcessorPil(min_pixels=1, max_pixels=512**2, rescale_factor=factor)
    image = noise(56, 84)
    got = np.empty((4 * 6, config.patch_dim), np.float32)
    PatchMaker(config, (4, 6))(image, got)
    want = processor(images=[Image.fromarray(image)], return_tensors="np")["pixel_values"]
    assert np.array_equal(got, want)


@pytest.mark.parametrize(("patch", "merge", "frames"), [(8, 1, 1), (14, 3, 2), (16, 2, 4)])
def test_other_patches_are_followed(patch, merge, frames):
    fields = {"patch_size": patch, "merge_size": merge, "temporal_patch_size": frames}
    config = ImageConfig(min_pixels=1, max_pixels=512**2, **fields)
    processor = Qwen2VLImageProcessorPil(min_pixels=1, max_pixels=512**2, **fields)
    image = noise(150, 130)
    want = processor(images=[Image.fromarray(image)], return_tensors="np")
    grid = grid_of(150, 130, config)
    got = np.empty((grid[0] * grid[1], config.patch_dim), np.float32)
    PatchMaker(config, grid)(image, got)
    assert np.array_equal(got, want["pixel_values"])


def test_an_image_leaves_no_trace_in_the_next_one():
    config = ImageConfig(min_pixels=1, max_pixels=512**2)
    reused = PatchMaker(config, (8, 8))
    first, second, want = np.empty((3, 64, config.patch_dim), np.float32)
    reused(noise(112, 112), first)
    kept = first.copy()
    reused(gradient(112, 112), second)
    PatchMaker(config, (8, 8))(gradient(112, 112), want)
    assert np.array_equal(second, want)
    assert np.array_equal(first, kept)


def test_other_means_and_deviations_are_followed():
    mean, std = (0.5, 0.4, 0.3), (0.25, 0.5, 0.125)
    config = ImageConfig(min_pixels=1, max_pixels=512**2, image_mean=mean, image_std=std)
    processor = Qwen2VLImageProcessorPil(
        min_pixels=1, max_pixels=512**2, image_mean=list(mean), image_std=list(std)
    )
    image = noise(56, 84)
    got = np.empty((4 * 6, config.patch_dim), np.float32)
    PatchMaker(config, (4, 6))(image, got)
    want = processor(images=[Image.fromarray(image)], return_tensors="np")["pixel_values"]
    assert np.array_equal(got, want)


def test_min_pixels_zero_is_read_as_one():
    zero, one = (ImageConfig(min_pixels=n, max_pixels=512**2) for n in (0, 1))
    assert resized_shape(10, 10, zero) == resized_shape(10, 10, one) == (28, 28)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        ([[0, 1]], "camera must be a numpy array, got list"),
        (np.full((4, 4, 3), 0.5, np.float32), r"uint8 in 0..255, got float32, max 0.5; convert"),
        (np.zeros((0, 4, 3), np.float32), r"uint8 in 0..255, got float32; convert"),
        (np.zeros((3, 8, 9), np.uint8), r"got \[3, 8, 9\]; this looks like \[3, H, W\]"),
        (np.zeros((8, 9, 4), np.uint8), r"got \[8, 9, 4\]; drop the alpha channel"),
        (np.zeros((8, 9), np.uint8), r"must be \[H, W, 3\] RGB, got \[8, 9\]$"),
        (np.zeros((0, 9, 3), np.uint8), r"must be \[H, W, 3\] RGB, got \[0, 9, 3\]$"),
        (np.full((8, 9, 3), 7, np.uint8), r"one value everywhere \(7\): is the lens covered"),
    ],
)
def test_a_bad_image_is_refused(image, message):
    with pytest.raises(ObservationError, match=message):
        check_image(image, what="camera")


def test_a_good_image_passes():
    check_image(noise(8, 9), what="camera")


@pytest.mark.parametrize("row", [0, 3, 7])
def test_a_picture_with_something_on_one_row_passes(row):
    image = np.full((8, 9, 3), 7, np.uint8)
    image[row, 4, 1] = 8
    check_image(image, what="camera")


@pytest.mark.parametrize("size", [(1, 201), (402, 2)])
def test_a_strip_of_an_image_is_refused(size):
    config = ImageConfig(min_pixels=1, max_pixels=512**2)
    with pytest.raises(ObservationError, match="too narrow: aspect ratio above 200"):
        resized_shape(*size, config)


def test_an_image_of_another_grid_is_refused():
    config = ImageConfig(min_pixels=1, max_pixels=512**2)
    out = np.empty((64, config.patch_dim), np.float32)
    with pytest.raises(ObservationError, match="640x480 gives 30x42 patches.*exported for 8x8"):
        PatchMaker(config, (8, 8))(noise(480, 640), out)


SQUARE = {"min_pixels": 1, "max_pixels": 56**2, "size": (56, 56), "do_center_crop": True}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"min_pixels": 2, "max_pixels": 1}, "0 <= min_pixels <= max_pixels expected, got 2, 1"),
        ({"min_pixels": -1, "max_pixels": 1}, "0 <= min_pixels <= max_pixels expected"),
        ({"min_pixels": 1, "max_pixels": 1, "image_mean": (0.5,)}, "must hold three numbers"),
        ({"min_pixels": 1, "max_pixels": 1, "image_mean": 0.5}, "must hold three numbers, got 0.5"),
        ({"min_pixels": 1, "max_pixels": 1, "image_std": "rgb"}, "three numbers, got 'rgb'"),
        ({"min_pixels": 1, "max_pixels": 1, "image_std": (1, 0, 1)}, "std above zero"),
        ({"min_pixels": 1, "max_pixels": 1, "image_mean": (0, "0", 0)}, "must hold finite numbers"),
        ({"min_pixels": 1, "max_pixels": 1, "image_mean": (0, True, 0)}, "hold finite numbers"),
        ({"min_pixels": 1, "max_pixels": 1, "rescale_factor": "1"}, "rescale_factor must be a fin"),
        ({**SQUARE, "size": None}, "do_center_crop cuts a square from the middle: size must"),
        ({**SQUARE, "size": (56, 28)}, r"which are the same, got \(56, 28\)"),
        ({**SQUARE, "do_center_crop": False}, "do_center_crop must be true or left out, got False"),
        ({**SQUARE, "jpeg_quality": 90}, "jpeg_quality and do_center_crop exclude each other"),
        ({**SQUARE, "size": (60, 60)}, "images of 60x60, which would be resized again, to 56x56"),
    ],
)
def test_settings_that_make_no_sense_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        ImageConfig(**fields)


MIDDLE = ImageConfig(
    min_pixels=1, max_pixels=64 * 64, patch_size=16, merge_size=1, temporal_patch_size=1,
    size=(64, 64), do_center_crop=True, image_mean=(0.5,) * 3, image_std=(0.5,) * 3,
)  # fmt: skip


@pytest.mark.parametrize("size", [(64, 64), (64, 96), (100, 64), (480, 640), (91, 200), (40, 30)])
@pytest.mark.parametrize("picture", [noise, gradient])
def test_the_middle_of_an_image_is_that_of_transformers(picture, size):
    """Sizes that leave as many pixels on both sides: elsewhere transformers cuts otherwise."""
    image = picture(*size)
    processor = CLIPImageProcessorPil(
        size={"shortest_edge": 64}, crop_size=64, image_mean=[0.5] * 3, image_std=[0.5] * 3
    )
    want = processor(images=[Image.fromarray(image)], return_tensors="np")["pixel_values"][0]
    out = np.empty((16, MIDDLE.patch_dim), np.float32)
    PatchMaker(MIDDLE, grid_of(*size, MIDDLE))(image, out)
    cut = want.reshape(3, 4, 16, 4, 16).transpose(1, 3, 0, 2, 4).reshape(16, -1)
    assert np.array_equal(out, cut)


@pytest.mark.parametrize(("length", "start"), [(65, 0), (66, 1), (67, 2), (69, 2), (71, 4)])
@pytest.mark.parametrize("axis", [0, 1])
def test_the_middle_is_where_torchvision_has_it(axis, length, start):
    """Half of what is left, rounded half to even, is in front: its `CenterCrop`."""
    image = noise(*((length, 64) if axis == 0 else (64, length)))
    want = image.take(range(start, start + 64), axis)
    assert np.array_equal(PatchMaker(MIDDLE, (4, 4)).fitted(image), want)


def test_similarity_is_the_cosine_of_mean_features():
    a = np.array([[1.0, 0.0], [1.0, 2.0]], np.float32)
    assert similarity(a, a) == pytest.approx(1)
    assert similarity(a, -3 * a) == pytest.approx(-1)
    assert similarity(a, np.array([[1.0, -1.0]], np.float32)) == pytest.approx(0)
    assert similarity(a, np.zeros((1, 2), np.float32)) == 0.0


LAYOUTS = {
    "read-only": lambda image: image,
    "flipped": lambda image: image[::-1, ::-1],
    "every second": lambda image: np.repeat(np.repeat(image, 2, 0), 2, 1)[::2, ::2],
    "transposed": lambda image: image.transpose(1, 0, 2).copy().transpose(1, 0, 2),
    "planes": lambda image: image.transpose(2, 0, 1).copy().transpose(1, 2, 0),
    "BGR": lambda image: image[:, :, ::-1],
    "cut out": lambda image: np.pad(image, ((3, 4), (5, 6), (0, 0)))[3:-4, 5:-6],
}


@pytest.mark.parametrize("size", [(100, 90), (84, 112)])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_however_an_image_lies_in_memory_it_is_read_and_left_alone(layout, size):
    config = ImageConfig(min_pixels=1, max_pixels=512**2)
    image = LAYOUTS[layout](noise(*size))
    image.setflags(write=False)
    kept = image.copy()
    grid = grid_of(*image.shape[:2], config)
    got, want = np.empty((2, grid[0] * grid[1], config.patch_dim), np.float32)
    PatchMaker(config, grid)(image, got)
    PatchMaker(config, grid)(np.ascontiguousarray(image), want)
    assert np.array_equal(got, want)
    assert np.array_equal(image, kept)
