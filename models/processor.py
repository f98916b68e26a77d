"""`preprocessor_config.json`: the settings of a Qwen2-VL image processor.

Goes in: the file as transformers writes it, in either spelling of the image limits, or with a
`size` of height and width as we write it, and what is done on the way there as TensorFlow does it.
Comes out: what `runtime.image` does. The trade-off: every setting is honoured or refused, so a file
with one that nobody here knows is refused even where it would change nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from models.json_file import read_object
from runtime.image import AS_TENSORFLOW, ImageConfig

_HONOURED = (
    "patch_size", "temporal_patch_size", "merge_size", "rescale_factor", "do_center_crop",
    *AS_TENSORFLOW, "letterbox",
)  # fmt: skip
_VECTORS = ("image_mean", "image_std")
_LIMITS = {"min_pixels": "shortest_edge", "max_pixels": "longest_edge"}
"""Setting and its newer name in `size`."""
_EXACT = ("height", "width")
"""Both of `size`, where it states what every image is brought to first."""

_BICUBIC = 3
_ACCEPTED: Mapping[str, tuple[Any, ...]] = {
    # What is always done.
    "do_resize": (True,),
    "do_rescale": (True,),
    "do_normalize": (True,),
    "resample": (_BICUBIC, "lanczos3"),  # of which the second is honoured
    # What is never done, and transformers' Qwen2-VL processor does not do either.
    "do_center_crop": (True, False, None),  # of which the first is honoured
    "crop_size": (None,),
    "do_pad": (False, None),
    "pad_size": (None,),
    "image_seq_length": (None,),
    # What makes no difference to an RGB image of a camera.
    "do_convert_rgb": (True, False, None),
    "default_to_square": (True, False, None),
    "data_format": ("channels_first", None),
    "input_data_format": (None,),
    "device": (None,),
    "disable_grouping": (True, False, None),
    "return_tensors": (None,),
}
"""Settings that change nothing here, and the values with which that is right."""
_PROCESSORS = ("Qwen2VLImageProcessor", "Qwen2VLImageProcessorFast", "Qwen2VLImageProcessorPil")
_NAMES = {"image_processor_type": _PROCESSORS, "feature_extractor_type": _PROCESSORS}


def read_image_config(path: Path) -> ImageConfig:
    """
    Raises:
        ValueError: a setting that is not honoured, of a wrong type or missing; names it.
    """
    raw = read_object(path)
    try:
        return _image_config(raw)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _image_config(raw: Mapping[str, Any]) -> ImageConfig:
    for name, names in _NAMES.items():
        if raw.get(name) is not None and raw[name] not in names:
            raise ValueError(f"{name} is {raw[name]!r}, only {names[0]} can be made here")
    for name, accepted in _ACCEPTED.items():
        # By type too: 1 is not True, and True is not a filter.
        if name in raw and not any(raw[name] is a or _same(raw[name], a) for a in accepted):
            raise ValueError(
                f"{name}={raw[name]!r} is not honoured, only {' or '.join(map(repr, accepted))}; "
                "export what the policy was trained with, or ask for this setting"
            )
    known = {*_HONOURED, *_VECTORS, *_LIMITS, *_ACCEPTED, *_NAMES, "size", "processor_class"}
    if unknown := sorted(raw.keys() - known):
        raise ValueError(
            f"unknown settings {unknown}: whether they change the image is not known; remove them "
            "if they do not"
        )
    fields = {name: raw[name] for name in _HONOURED if name in raw} | _sizes(raw)
    if fields.get("resample") == _BICUBIC:
        del fields["resample"]  # as where nothing is said
    if fields.get("do_center_crop") is False:
        del fields["do_center_crop"]
    for name in _VECTORS:
        if name in raw:
            if not isinstance(raw[name], list):
                raise ValueError(f"{name} must be a list of three numbers, got {raw[name]!r}")
            fields[name] = tuple(raw[name])
    return ImageConfig(**fields)


def _same(value: Any, accepted: Any) -> bool:
    return type(value) is type(accepted) and value == accepted


def image_fields(image: ImageConfig) -> dict[str, Any]:
    """As `read_image_config` reads them."""
    stated = {name: getattr(image, name) for name in ImageConfig.__slots__ if name != "size"}
    fields = {name: value for name, value in stated.items() if value is not None}
    return fields | ({"size": dict(zip(_EXACT, image.size, strict=True))} if image.size else {})


def _sizes(raw: Mapping[str, Any]) -> dict[str, Any]:
    """min_pixels and max_pixels, and the exact size if it states one; like transformers, null is as
    good as absent, and both limits go before those of `size`."""
    size = raw.get("size")
    if size is not None and not isinstance(size, dict):
        raise ValueError(
            f"size must be an object with shortest_edge and longest_edge, got {size!r}"
        )
    size = size or {}
    if unknown := sorted(size.keys() - {*_LIMITS.values(), *_EXACT}):
        raise ValueError(
            f"size.{unknown[0]} is not honoured, only shortest_edge and longest_edge (in pixels of "
            "the whole image), or height and width"
        )
    exact = tuple(size[side] for side in _EXACT if side in size)
    if len(exact) == 1:
        raise ValueError(f"size must state both height and width, or neither, got {size!r}")
    limits = {
        name: size.get(newer) if raw.get(name) is None else raw[name]
        for name, newer in _LIMITS.items()
    }
    if missing := [name for name, value in limits.items() if value is None]:
        raise ValueError(
            f"states no min_pixels and max_pixels ({' and '.join(missing)} missing, or "
            f"{_LIMITS[missing[0]]} in size); state what the policy was trained with (transformers "
            "takes 3136 and 1003520 where nothing is said)"
        )
    return limits | ({"size": exact} if exact else {})
