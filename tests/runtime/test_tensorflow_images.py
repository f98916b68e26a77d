"""Images prepared as TensorFlow prepares them: against what it made of the same pictures, to the
bit, and against the published definitions in float64.

A processor that neither rescales nor normalises shows what was made of an image: each value of a
patch is then one of a pixel.
"""

import hashlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import numpy as np
import pytest
from PIL import Image, features

from runtime.errors import ObservationError
from runtime.image import ImageConfig, PatchMaker
from runtime.jpeg import through_jpeg
from runtime.resize import crop_samples, lanczos3_taps
from tests.pictures import ASKED, EVERY, LONG, SHORT, edges, noise, smooth

KEPT = np.load(Path(__file__).parent / "tensorflow_images.npz")
"""Written by `tests/tensorflow_images.py`."""
LIMITS = {"min_pixels": 1, "max_pixels": 512 * 512}


def config_of(size, patch=14, **settings):
    as_is = {"rescale_factor": 1.0, "image_mean": (0, 0, 0), "image_std": (1, 1, 1)}
    patches = {"patch_size": patch, "merge_size": 1, "temporal_patch_size": 1}
    return ImageConfig(**LIMITS, **as_is, **patches, size=size, **settings)


def maker(size, patch=14, **settings):
    """uint8 [H, W, 3] -> [*size, 3]."""
    rows, columns = size[0] // patch, size[1] // patch
    make = PatchMaker(config_of(size, patch, **settings), (rows, columns))

    def run(image):
        out = np.full((rows * columns, 3 * patch * patch), np.nan, np.float32)
        make(image, out)
        blocks = out.reshape(rows, columns, 3, patch, patch).transpose(0, 3, 1, 4, 2)
        made = blocks.reshape(*size, 3)
        assert np.array_equal(made, made.astype(np.uint8))
        return made.astype(np.uint8)

    return run


def assert_kept(asked, name, got):
    rows = KEPT[f"{asked.name}/{name}"]
    assert np.array_equal(got[::EVERY], rows)
    digest = hashlib.sha256(np.ascontiguousarray(got).tobytes()).digest()
    assert digest == KEPT[f"{asked.name}/{name}/sha256"].tobytes()


def assert_kept_by_turbo(asked, name, got, without_jpeg):
    """To the bit where libjpeg-turbo reads and writes; another library may round DCTs otherwise.

    Then two codecs differ by no more than either loses: what JPEG changes in a picture at all is
    the most that they may be apart, on the average.
    """
    if features.check_feature("libjpeg_turbo"):
        assert_kept(asked, name, got)
        return
    want = KEPT[f"{asked.name}/{name}"].astype(int)
    lost = np.abs(want - without_jpeg[::EVERY]).mean()
    assert np.abs(want - got[::EVERY]).mean() <= lost


@pytest.fixture(params=ASKED, ids=lambda asked: asked.name)
def asked(request):
    return request.param


def test_the_pictures_are_those_that_tensorflow_saw(asked):
    digest = hashlib.sha256(asked.picture(*asked.seen).tobytes()).digest()
    assert digest == KEPT[f"{asked.name}/picture/sha256"].tobytes()


def test_resizing_is_tensorflows_to_the_bit(asked):
    make = maker(asked.size, resample="lanczos3")
    assert_kept(asked, "resized", make(asked.picture(*asked.seen)))


def test_resizing_and_cropping_are_tensorflows_to_the_bit(asked):
    make = maker(asked.size, resample="lanczos3", crop_area=asked.crop_area)
    assert_kept(asked, "resized_cropped", make(asked.picture(*asked.seen)))


@pytest.mark.parametrize("asked", [a for a in ASKED if a.seen != a.size], ids=lambda a: a.name)
def test_jpeg_is_tensorflows(asked):
    image = asked.picture(*asked.seen)
    assert_kept_by_turbo(asked, "jpeg", through_jpeg(image, asked.quality), image)


def test_the_whole_way_is_tensorflows(asked):
    image = asked.picture(*asked.seen)
    settings = {"resample": "lanczos3", "crop_area": asked.crop_area}
    got = maker(asked.size, **settings, jpeg_quality=asked.quality)(image)
    assert_kept_by_turbo(asked, "jpeg_resized_cropped", got, maker(asked.size, **settings)(image))


def lanczos_matrix(num_in, num_out):
    """[num_out, num_in] float64: the window sinc(x) sinc(x / 3) of Lanczos (Duchon, 1979) around
    each place of the result, as wide as the pixels of the result are where these are larger."""
    scale = num_in / num_out
    distance = np.arange(num_in) + 0.5 - (np.arange(num_out)[:, None] + 0.5) * scale
    x = distance / max(scale, 1.0)
    weights = np.where(np.abs(x) < 3, np.sinc(x) * np.sinc(x / 3), 0.0)
    return weights / weights.sum(axis=1, keepdims=True)


@pytest.mark.parametrize("seen", [(480, 640), (100, 333), (56, 42), (61, 28), (9, 300)])
@pytest.mark.parametrize("size", [(224, 224), (28, 70), (56, 42)])
@pytest.mark.parametrize("picture", [noise, edges])
def test_resizing_is_the_published_filter(picture, seen, size):
    image = picture(*seen)
    rows, columns = (lanczos_matrix(n, m) for n, m in zip(seen, size, strict=True))
    want = np.einsum("yh,xw,hwc->yxc", rows, columns, image, optimize=True)
    # In float32 a center is off by at most 2 units in the last place of num_in, in a filter whose
    # weights change by 3 / max(scale, 1) levels per pixel in all, and a sum of n terms by n + 8
    # roundings; along the other axis that is multiplied by weights of absolute sum below 1.5.
    error = 0.0
    for matrix in (rows, columns):
        terms = np.count_nonzero(matrix, axis=1).max()
        error += 255 * 1.5 * (2 * 3 * min(matrix.shape) + terms + 8) * 2**-24
    got = maker(size, resample="lanczos3")(image)
    if seen == size:
        assert np.array_equal(got, image)
    assert np.abs(got - np.clip(want, 0, 255)).max() <= 0.5 + error


@pytest.mark.parametrize("num_in", LONG)
def test_weights_are_tensorflows_to_the_bit_and_those_of_the_published_filter(num_in):
    got = np.zeros((SHORT, num_in), np.float32)
    for row, (places, weights) in zip(got, lanczos3_taps(num_in, SHORT), strict=True):
        row[places] = weights[:, 0]
    # A center near num_in is off by 2 units in its last place, and a weight by that times the
    # slope of the window, below 2 per pixel; beside it a handful of roundings.
    error = (2 * 2 * num_in + 8) * 2**-24
    assert np.abs(got - lanczos_matrix(num_in, SHORT)).max() <= error
    digest = hashlib.sha256(got.tobytes()).digest()
    assert digest == KEPT[f"weights-{num_in}/sha256"].tobytes()


@pytest.mark.parametrize("area", [1e-4, 0.3, 0.9, 0.999999, 0.99999999, 1, 1.0])
@pytest.mark.parametrize("size", [(224, 224), (28, 70), (1, 8), (2, 3)])
@pytest.mark.parametrize("picture", [noise, edges])
def test_a_crop_is_stretched_corner_to_corner(picture, size, area):
    """The first pixel lies on one edge of the box and the last one on the other, where pixels of
    the image are places 0 to side - 1; between two there is a straight line."""
    image = picture(*size)
    lines = []
    for side in size:
        share = area**0.5
        place = np.linspace((1 - share) / 2, (1 + share) / 2, side) * (side - 1)
        lines.append(np.maximum(0, 1 - np.abs(np.arange(side) - place[:, None])))
    want = np.einsum("yh,xw,hwc->yxc", *lines, image, optimize=True) * (255.5 / 255)
    # What is behind the point is cut off. A place is off by some units in its last place along
    # either axis, times at most 255 levels per pixel; beside it a handful of roundings.
    error = 255 * (4 * sum(size) + 8) * 2**-24
    got = maker(size, 1, crop_area=area)(image).astype(int)
    assert (got <= want + error).all() and (got > want - 1 - error).all()
    if area == 1:
        assert np.array_equal(got, image)


def test_jpeg_without_another_filter_goes_before_pillows_own():
    image = smooth(90, 120)
    resized = Image.fromarray(through_jpeg(image, 40)).resize((70, 28), Image.Resampling.BICUBIC)
    got = maker((28, 70), jpeg_quality=40)(image)
    assert np.array_equal(got, np.asarray(resized))
    assert not np.array_equal(got, maker((28, 70))(image))


def test_jpeg_of_a_lower_quality_loses_more():
    image = smooth(90, 121)
    lost = [np.abs(through_jpeg(image, q).astype(int) - image).mean() for q in (1, 30, 95)]
    assert lost[0] > 2 * lost[1] > 2 * lost[2] > 0


EVERYTHING = {"resample": "lanczos3", "jpeg_quality": 95, "crop_area": 0.9}
LAYOUTS = {
    "as it is": lambda image: image,
    "flipped": lambda image: image[::-1, ::-1],
    "planes": lambda image: image.transpose(2, 0, 1).copy().transpose(1, 2, 0),
    "BGR": lambda image: image[:, :, ::-1],
    "cut out": lambda image: np.pad(image, ((3, 4), (5, 6), (0, 0)))[3:-4, 5:-6],
}


@pytest.mark.parametrize("seen", [(56, 70), (60, 81)])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_however_an_image_lies_in_memory_it_is_read_and_left_alone(layout, seen):
    image = LAYOUTS[layout](noise(*seen))
    image.setflags(write=False)
    kept = image.copy()
    make = maker((56, 70), **EVERYTHING)
    assert np.array_equal(make(image), make(np.ascontiguousarray(image)))
    assert np.array_equal(image, kept)


def test_threads_may_share_a_patch_maker_and_its_weights():
    lanczos3_taps.cache_clear()
    crop_samples.cache_clear()
    images = [
        picture(*seen) for seen in ((61, 75), (60, 70), (56, 70)) for picture in (noise, edges)
    ]
    shared = maker((56, 70), **EVERYTHING)
    with ThreadPoolExecutor(8) as threads:
        got = list(threads.map(shared, images * 4))
    for image, made in zip(images * 4, got, strict=True):
        assert np.array_equal(made, maker((56, 70), **EVERYTHING)(image))


def test_a_setting_of_numpy_is_left_as_it_was():
    usual = np.setbufsize(4096)
    try:
        maker((56, 70), **EVERYTHING)(noise(61, 75))
        assert np.getbufsize() == 4096
    finally:
        np.setbufsize(usual)


def test_weights_are_computed_once_for_each_size_of_a_camera():
    make = maker((56, 70), **EVERYTHING)
    for cached in (lanczos3_taps, crop_samples):
        cached.cache_clear()
        for seen in ((61, 75), (61, 75), (60, 75)):
            make(noise(*seen))
    assert lanczos3_taps.cache_info().misses == 3 and crop_samples.cache_info().misses == 2
    for _, weights in lanczos3_taps(61, 56):
        assert not weights.flags.writeable
    assert not any(array.flags.writeable for array in crop_samples(56, 0.9))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"resample": "bicubic"}, "resample must be 'lanczos3' or left out, got 'bicubic'"),
        ({"resample": 1}, "resample must be 'lanczos3' or left out, got 1"),
        ({"resample": ""}, "resample must be 'lanczos3' or left out, got ''"),
        ({"jpeg_quality": 0}, "jpeg_quality must be a whole number of 1 to 100, got 0"),
        ({"jpeg_quality": 101}, "jpeg_quality must be a whole number of 1 to 100, got 101"),
        ({"jpeg_quality": 95.0}, "jpeg_quality must be a whole number of 1 to 100, got 95.0"),
        ({"jpeg_quality": True}, "jpeg_quality must be a whole number of 1 to 100, got True"),
        ({"jpeg_quality": "95"}, "jpeg_quality must be a whole number of 1 to 100, got '95'"),
        ({"crop_area": 0}, "crop_area must be a share above 0, at most 1, got 0"),
        ({"crop_area": 1.01}, "crop_area must be a share above 0, at most 1, got 1.01"),
        ({"crop_area": float("nan")}, "crop_area must be a share above 0, at most 1, got nan"),
        ({"crop_area": True}, "crop_area must be a share above 0, at most 1, got True"),
        ({"crop_area": "0.9"}, "crop_area must be a share above 0, at most 1, got '0.9'"),
        ({"resample": "lanczos3", "size": None}, "resample needs size: the height and width of"),
        ({"jpeg_quality": 95, "size": None}, "jpeg_quality needs size: the height and width"),
        ({"crop_area": 0.9, "size": None}, "crop_area needs size: the height and width of"),
        (
            {"resample": "lanczos3", "size": (224, 200)},
            "resample makes images of 224x200, which would be resized again, to 224x196: state",
        ),
        ({"jpeg_quality": 95, "min_pixels": 300**2}, "jpeg_quality makes images of 224x224, which"),
        (
            {"crop_area": 0.9, "max_pixels": 200**2},
            "224x224, which would be resized again, to 196x",
        ),
        ({"crop_area": 0.9, "size": (1, 400)}, "1x400, which would be resized again, to 14x"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, message):
    fields = {**LIMITS, "merge_size": 1, "size": (224, 224)} | settings
    with pytest.raises(ValueError, match=message) as refused:
        ImageConfig(**fields)
    assert not isinstance(refused.value, ObservationError)


@pytest.mark.parametrize("settings", [{}, {"crop_area": 1}, EVERYTHING])
def test_a_manifest_states_what_is_set_and_is_read_again(settings):
    image = config_of((224, 224), **settings)
    assert image.as_tensorflow == [name for name in EVERYTHING if name in settings]
    stated = {
        name: value for name, value in msgspec.to_builtins(image).items() if value is not None
    }
    assert stated.keys() & EVERYTHING.keys() == settings.keys()
    assert msgspec.convert(msgspec.json.decode(msgspec.json.encode(stated)), ImageConfig) == image
