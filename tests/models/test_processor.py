"""Image settings against transformers' processor: the same pixels, or refused by name."""

import json

import numpy as np
import pytest
from PIL import Image
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from models.networks.transformers_qwen import image_processor
from models.processor import image_fields, read_image_config
from models.split import GraphBuilder
from runtime.image import ImageConfig, PatchMaker, grid_of

PICTURE = np.random.default_rng(0).integers(0, 256, (120, 150, 3), np.uint8)
LIMITS = {"min_pixels": 1, "max_pixels": 512 * 512}
SIZE = {"shortest_edge": 1, "longest_edge": 512 * 512}


@pytest.fixture
def read(tmp_path):
    def write_and_read(**raw):
        path = tmp_path / "preprocessor_config.json"
        path.write_text(json.dumps(raw))
        return read_image_config(path)

    return write_and_read


def patches(config):
    grid = grid_of(*PICTURE.shape[:2], config)
    out = np.empty((grid[0] * grid[1], config.patch_dim), np.float32)
    PatchMaker(config, grid)(PICTURE, out)
    return out


@pytest.mark.parametrize(
    "raw",
    [
        LIMITS,
        {"size": SIZE},
        {"size": SIZE, "min_pixels": None, "max_pixels": None},
        {"size": {"shortest_edge": 5, "longest_edge": 9}, **LIMITS},
        {"size": {**SIZE, "longest_edge": 5}, "max_pixels": 112 * 112},
        {"size": None, "min_pixels": 300 * 300, "max_pixels": 512 * 512},
        {**LIMITS, "image_mean": [0.5, 0.4, 0.3], "image_std": [0.1, 0.2, 1], "patch_size": 16},
        {**LIMITS, "rescale_factor": 1 / 127.5, "merge_size": 1, "temporal_patch_size": 1},
        {**LIMITS, "do_convert_rgb": False, "default_to_square": True, "crop_size": None},
        {**LIMITS, "do_pad": None, "do_center_crop": False, "data_format": "channels_first"},
    ],
)
def test_what_is_read_makes_the_pixels_of_transformers_bit_for_bit(read, raw):
    processor = Qwen2VLImageProcessorPil(**raw)
    want = processor(images=[Image.fromarray(PICTURE)], return_tensors="np")["pixel_values"]
    assert np.array_equal(patches(read(**raw)), want)


@pytest.mark.parametrize("size", [None, (224, 308)])
def test_what_is_written_is_read_again(read, size):
    image = ImageConfig(**LIMITS, size=size)
    assert read(**image_fields(image)) == image


AS_TENSORFLOW = {"resample": "lanczos3", "jpeg_quality": 95, "crop_area": 0.9}


@pytest.mark.parametrize("name", [*AS_TENSORFLOW, None])
def test_what_is_done_as_tensorflow_does_it_is_written_and_read_again(read, name):
    settings = {name: AS_TENSORFLOW[name]} if name else AS_TENSORFLOW
    image = ImageConfig(**LIMITS, size=(224, 308), **settings)
    fields = image_fields(image)
    assert {setting: fields[setting] for setting in settings} == settings
    assert fields.keys().isdisjoint(AS_TENSORFLOW.keys() - settings.keys())
    assert read(**fields) == image


def test_settings_that_are_not_stated_are_not_written(read):
    size = {"height": 224, "width": 308}
    stated = {name: None for name in ("jpeg_quality", "crop_area")}
    assert read(**LIMITS, size=size, resample=3, **stated) == ImageConfig(**LIMITS, size=(224, 308))
    fields = image_fields(ImageConfig(**LIMITS, size=(224, 308)))
    assert list(fields) == [
        *("min_pixels", "max_pixels", "patch_size", "temporal_patch_size", "merge_size"),
        *("rescale_factor", "image_mean", "image_std", "size"),
    ]
    builder = GraphBuilder({}, ImageConfig(**LIMITS), (8, 8))
    assert list(builder.patches["image"]) == list(fields)[:-1]


def test_a_file_that_transformers_wrote_is_read(tmp_path):
    Qwen2VLImageProcessorPil(**LIMITS).save_pretrained(tmp_path)
    assert read_image_config(tmp_path / "preprocessor_config.json") == ImageConfig(**LIMITS)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"do_normalize": False}, "do_normalize=False is not honoured, only True; export what"),
        ({"do_normalize": None}, "do_normalize=None is not honoured"),
        ({"do_normalize": 1}, "do_normalize=1 is not honoured"),
        ({"do_rescale": False}, "do_rescale=False is not honoured"),
        ({"do_resize": False}, "do_resize=False is not honoured"),
        ({"resample": 2}, "resample=2 is not honoured, only 3 or 'lanczos3'; export"),
        ({"resample": 3.0}, "resample=3.0 is not honoured"),
        ({"resample": "bicubic"}, "resample='bicubic' is not honoured, only 3 or 'lanczos3'"),
        ({"resample": "lanczos3"}, "resample needs size"),
        ({"jpeg_quality": "95"}, "jpeg_quality must be a whole number of 1 to 100, got '95'"),
        ({"crop_area": 2}, "crop_area must be a share above 0, at most 1, got 2"),
        ({"crop_area": 0.9, "size": SIZE}, "crop_area needs size"),
        ({"resample": None}, "resample=None is not honoured"),
        ({"do_center_crop": True}, "do_center_crop cuts a square from the middle: size must"),
        ({"do_center_crop": 1}, "do_center_crop=1 is not honoured, only True or False or None"),
        ({"do_pad": True}, "do_pad=True is not honoured"),
        ({"pad_size": {"height": 8}}, "pad_size={'height': 8} is not honoured"),
        ({"data_format": "channels_last"}, "data_format='channels_last' is not honoured"),
        (
            {"image_processor_type": "CLIPImageProcessor"},
            "image_processor_type is .*, only Qwen2VLImageP",
        ),
        ({"sharpen": 2, "blur": 1}, r"unknown settings \['blur', 'sharpen'\]"),
        ({"max_pixels": "262144"}, "max_pixels must be a whole number, got '262144'"),
        ({"max_pixels": 262144.0}, "max_pixels must be a whole number, got 262144.0"),
        ({"min_pixels": True}, "min_pixels must be a whole number, got True"),
        ({"size": 224}, "size must be an object with shortest_edge and longest_edge, got 224"),
        (
            {"size": {"height": 224}},
            "size must state both height and width, or neither, got {'height': 224}",
        ),
        (
            {"size": {"height": 224, "width": "224"}},
            "size must be height and width, whole numbers from 1, got .224, '224'.",
        ),
        (
            {"size": {"depth": 224}},
            "size.depth is not honoured, only shortest_edge and longest_edge",
        ),
        ({"size": {"shortest_edge": "1"}, "min_pixels": None}, "min_pixels must be a whole number"),
        (
            {"min_pixels": None},
            "states no min_pixels and max_pixels .min_pixels missing, or shortes",
        ),
        ({"max_pixels": None}, "states no .*max_pixels missing, or longest_edge in size.; state"),
        (
            {"rescale_factor": "0.0039"},
            "rescale_factor must be a finite number above zero, got '0.0",
        ),
        ({"rescale_factor": None}, "rescale_factor must be a finite number above zero, got None"),
        ({"rescale_factor": 0}, "rescale_factor must be a finite number above zero, got 0"),
        (
            {"rescale_factor": float("nan")},
            "rescale_factor must be a finite number above zero, got n",
        ),
        ({"image_mean": 0.5}, "image_mean must be a list of three numbers, got 0.5"),
        ({"image_mean": None}, "image_mean must be a list of three numbers, got None"),
        ({"image_mean": [0.5, 0.5]}, r"image_mean must hold three numbers, got \(0.5, 0.5\)"),
        ({"image_std": [0.5, 0.5, "1"]}, "image_std must hold finite numbers, std above zero"),
        ({"image_std": [0.5, 0.5, 0]}, "image_std must hold finite numbers, std above zero"),
        ({"image_mean": [0.5, float("inf"), 0]}, "image_mean must hold finite numbers"),
        ({"patch_size": "14"}, "patch_size must be a whole number, got '14'"),
        ({"merge_size": 0}, "merge_size must be at least 1, got 0"),
    ],
)
def test_a_setting_that_is_not_honoured_is_refused_by_name(read, change, message):
    with pytest.raises(ValueError, match=f"preprocessor_config.json: {message}"):
        read(**(LIMITS | change))


@pytest.mark.parametrize("text", ["[]", "{", "null"])
def test_a_file_that_is_no_object_is_refused(tmp_path, text):
    path = tmp_path / "preprocessor_config.json"
    path.write_text(text)
    with pytest.raises(ValueError, match="preprocessor_config.json: (must be an object|not JSON)"):
        read_image_config(path)


def test_a_processor_of_transformers_is_not_taken_for_pictures_of_tensorflow():
    image = ImageConfig(**LIMITS, size=(224, 308), jpeg_quality=95, crop_area=0.9)
    with pytest.raises(ValueError, match="processor does not know jpeg_quality, crop_area"):
        image_processor(image)
