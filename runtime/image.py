"""Camera image -> normalised patches, bit for bit as the Qwen2-VL image processor makes them.

Resizing is Pillow's bicubic filter, which the policy was trained with. Policies whose pictures went
through TensorFlow or torch state so, see `resize` and `jpeg`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from .errors import ObservationError
from .jpeg import through_jpeg
from .resize import central_crop, lanczos3, letterbox

BICUBIC = Image.Resampling.BICUBIC
AS_TENSORFLOW = ("resample", "jpeg_quality", "crop_area")
"""Settings of what is done as TensorFlow does it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageConfig:
    """Processor settings, named as in `preprocessor_config.json`."""

    min_pixels: int
    max_pixels: int
    patch_size: int = 14
    temporal_patch_size: int = 2
    merge_size: int = 2
    rescale_factor: float = 1 / 255
    image_mean: tuple[float, float, float] = (0.48145466, 0.4578275, 0.40821073)
    image_std: tuple[float, float, float] = (0.26862954, 0.26130258, 0.27577711)
    size: tuple[int, int] | None = None
    """Height and width that an image is brought to before all else, whatever its aspect."""
    resample: Literal["lanczos3"] | None = None
    """How it is brought to `size`: TensorFlow's antialiased Lanczos-3, or else Pillow's bicubic."""
    jpeg_quality: int | None = None
    """An image of another size than `size` goes through JPEG (4:2:0) first, of 1 to 100."""
    do_center_crop: bool | None = None
    """Whether an image keeps its aspect: its shorter side is brought to that of `size`, a square,
    which is cut from its middle."""
    crop_area: float | None = None
    """Share of the area that is cut from the middle of an image of `size`, and stretched to it."""
    letterbox: Literal["top_left"] | None = None
    """An image is brought into `size` with its aspect kept, as torch interpolates, and black fills
    what is left: above it and on its left."""

    def __post_init__(self) -> None:
        sizes = ("patch_size", "temporal_patch_size", "merge_size")
        for name in (*sizes, "min_pixels", "max_pixels"):
            value = getattr(self, name)
            if not _is_whole(value):
                raise ValueError(f"{name} must be a whole number, got {value!r}")
            if name in sizes and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if self.size is not None and not (
            isinstance(self.size, tuple | list)
            and len(self.size) == 2
            and all(_is_whole(side) and side >= 1 for side in self.size)
        ):
            raise ValueError(
                f"size must be height and width, whole numbers from 1, got {self.size!r}"
            )
        if not 0 <= self.min_pixels <= self.max_pixels or self.max_pixels < 1:
            raise ValueError(
                f"0 <= min_pixels <= max_pixels expected, got {self.min_pixels}, {self.max_pixels}"
            )
        if not _is_finite(self.rescale_factor) or self.rescale_factor <= 0:
            raise ValueError(
                f"rescale_factor must be a finite number above zero, got {self.rescale_factor!r}"
            )
        for name in ("image_mean", "image_std"):
            values = getattr(self, name)
            if not isinstance(values, tuple | list) or len(values) != 3:
                raise ValueError(f"{name} must hold three numbers, got {values!r}")
            if not all(map(_is_finite, values)) or name == "image_std" and min(values) <= 0:
                raise ValueError(f"{name} must hold finite numbers, std above zero, got {values!r}")
        self._check_preparation()

    def _check_preparation(self) -> None:
        ways = [*filter(None, (self.as_tensorflow, self.as_torch, self._as_torchvision))]
        if self.letterbox not in (None, "top_left"):
            raise ValueError(f"letterbox must be 'top_left' or left out, got {self.letterbox!r}")
        if self.do_center_crop not in (None, True):
            raise ValueError(
                f"do_center_crop must be true or left out, got {self.do_center_crop!r}"
            )
        if len(ways) > 1:
            first, second = ways[0][0], ways[1][0]
            raise ValueError(f"{first} and {second} exclude each other: state one of them")
        if self.do_center_crop and (self.size is None or self.size[0] != self.size[1]):
            raise ValueError(
                "do_center_crop cuts a square from the middle: size must state its height and "
                f"width, which are the same, got {self.size}"
            )
        if self.resample not in (None, "lanczos3"):
            raise ValueError(f"resample must be 'lanczos3' or left out, got {self.resample!r}")
        quality, area = self.jpeg_quality, self.crop_area
        if quality is not None and not (_is_whole(quality) and 1 <= quality <= 100):
            raise ValueError(f"jpeg_quality must be a whole number of 1 to 100, got {quality!r}")
        if area is not None and not (_is_finite(area) and 0 < area <= 1):
            raise ValueError(f"crop_area must be a share above 0, at most 1, got {area!r}")
        if ways and self.size is None:
            raise ValueError(f"{ways[0][0]} needs size: the height and width of images after it")
        if ways and self.size and _whole_patches(*self.size, self) != tuple(self.size):
            rows, columns = _whole_patches(*self.size, self)
            raise ValueError(
                f"{ways[0][0]} makes images of {self.size[0]}x{self.size[1]}, which would be "
                f"resized again, to {rows}x{columns}: state a size of whole merged patches, and "
                "min_pixels and max_pixels that keep it"
            )

    @property
    def as_tensorflow(self) -> list[str]:
        """Settings stated that have an image prepared as TensorFlow does it."""
        return [name for name in AS_TENSORFLOW if getattr(self, name) is not None]

    @property
    def as_torch(self) -> list[str]:
        """Settings stated that have it prepared as torch does it."""
        return [] if self.letterbox is None else ["letterbox"]

    @property
    def _as_torchvision(self) -> list[str]:
        return [] if self.do_center_crop is None else ["do_center_crop"]

    @property
    def patch_dim(self) -> int:
        return 3 * self.temporal_patch_size * self.patch_size**2


def resized_shape(height: int, width: int, config: ImageConfig) -> tuple[int, int]:
    """Size an image is resized to: multiples of patch x merge, pixels between the limits.

    The rule of Qwen2-VL (`smart_resize`), from the exact size on where the settings have one.

    Raises:
        ObservationError: for an image 200 times longer than wide.
    """
    if max(height, width) > 200 * min(height, width):
        raise ObservationError(f"image of {width}x{height} is too narrow: aspect ratio above 200")
    height, width = config.size or (height, width)
    return _whole_patches(height, width, config)


def _whole_patches(height: int, width: int, config: ImageConfig) -> tuple[int, int]:
    factor = config.patch_size * config.merge_size
    rows, columns = round(height / factor) * factor, round(width / factor) * factor
    if rows * columns > config.max_pixels:
        shrink = math.sqrt(height * width / config.max_pixels)
        rows = max(factor, math.floor(height / shrink / factor) * factor)
        columns = max(factor, math.floor(width / shrink / factor) * factor)
    elif rows * columns < max(config.min_pixels, 1):
        grow = math.sqrt(max(config.min_pixels, 1) / (height * width))
        rows = math.ceil(height * grow / factor) * factor
        columns = math.ceil(width * grow / factor) * factor
    return rows, columns


def grid_of(height: int, width: int, config: ImageConfig) -> tuple[int, int]:
    """Rows and columns of patches that an image of this size gives."""
    rows, columns = resized_shape(height, width, config)
    return rows // config.patch_size, columns // config.patch_size


def check_image(image: NDArray[np.uint8], *, what: str) -> None:
    """Refuse anything but a uint8 [H, W, 3] picture with something on it.

    Raises:
        ObservationError: says what was seen instead.
    """
    if not isinstance(image, np.ndarray):
        raise ObservationError(f"{what} must be a numpy array, got {type(image).__name__}")
    if image.dtype != np.uint8:
        largest = f", max {image.max()}" if image.size else ""
        raise ObservationError(
            f"{what} must be uint8 in 0..255, got {image.dtype}{largest}; convert it first"
        )
    if image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
        hint = ""
        if image.ndim == 3 and image.shape[0] == 3:
            hint = "; this looks like [3, H, W], transpose it"
        elif image.ndim == 3 and image.shape[2] == 4:
            hint = "; drop the alpha channel"
        raise ObservationError(f"{what} must be [H, W, 3] RGB, got {list(image.shape)}{hint}")
    if image[0].min() == image[0].max() and image.min() == image.max():
        raise ObservationError(
            f"{what} is one value everywhere ({image.flat[0]}): "
            "is the lens covered, or the camera not started?"
        )


def check_grid(image: NDArray[np.uint8], config: ImageConfig, grid: tuple[int, int]) -> None:
    """Refuse an image [H, W, 3] that gives another grid of patches than the exported one.

    Raises:
        ObservationError: with both grids.
    """
    rows, columns = grid_of(image.shape[0], image.shape[1], config)
    if (rows, columns) != grid:
        raise ObservationError(
            f"an image of {image.shape[1]}x{image.shape[0]} gives {rows}x{columns} patches, "
            f"but this bundle was exported for {grid[0]}x{grid[1]}; crop or resize "
            "the camera image, or export again with the camera's size"
        )


class PatchMaker:
    """Turns images into patches for one exported grid. Threads may share one."""

    def __init__(self, config: ImageConfig, grid: tuple[int, int]) -> None:
        self.config = config
        self.grid = grid
        self._rows, self._columns = (side * config.patch_size for side in grid)
        self._mean = np.tile(np.array(config.image_mean, np.float32), self._columns)
        self._std = np.tile(np.array(config.image_std, np.float32), self._columns)

    def __call__(self, image: NDArray[np.uint8], out_NK: NDArray[np.float32]) -> None:
        """Write the patches of `image` uint8 [H, W, 3] to `out_NK` [N, patch_dim] float32.

        Raises:
            ObservationError: if the image would give another grid than the exported one.
        """
        c, (rows, columns) = self.config, self.grid
        check_grid(image, c, self.grid)
        fitted = self.fitted(image)
        m, p, width = c.merge_size, c.patch_size, 3 * self._columns
        blocks = out_NK.reshape(rows // m, columns // m, m, m, 3, c.temporal_patch_size, p, p)
        scaled = np.empty((m * p, width), np.float32)
        patches = scaled.reshape(m, p, -1, m, p, 3).transpose(2, 0, 3, 5, 1, 4)
        for row, block in zip(fitted.reshape(-1, m * p, width), blocks, strict=True):
            # A row of blocks at a time stays in a cache. The processor's own sequence of
            # operations: rescaled in float64, rounded to float32, then normalised.
            np.multiply(row, c.rescale_factor, out=scaled, dtype=np.float64, casting="same_kind")
            np.subtract(scaled, self._mean, out=scaled)
            np.divide(scaled, self._std, out=scaled)
            block[:, :, :, :, 0] = patches
            block[:, :, :, :, 1:] = block[:, :, :, :, :1]  # one image stands for all its frames

    def fitted(self, image: NDArray[np.uint8]) -> NDArray[Any]:
        """uint8 [H, W, 3] as networks see it: resized to the grid, and the middle of it where the
        settings have `crop_area`. Levels in a `letterbox` are float32: nobody rounded them."""
        c = self.config
        if c.letterbox is not None:
            size = self._rows, self._columns
            return image if image.shape[:2] == size else letterbox(image, size)
        if c.do_center_crop:
            return _middle(image, self._rows)
        for height, width in filter(None, (c.size, (self._rows, self._columns))):
            if image.shape[:2] == (height, width):
                continue
            if c.jpeg_quality is not None:
                image = through_jpeg(image, c.jpeg_quality)
            if c.resample == "lanczos3":
                image = lanczos3(image, (height, width))
            else:
                image = np.asarray(Image.fromarray(image).resize((width, height), BICUBIC))
        return image if c.crop_area is None else central_crop(image, c.crop_area)


def _middle(image: NDArray[np.uint8], side: int) -> NDArray[np.uint8]:
    """The middle of an image whose shorter side is brought to `side`, a square, as torchvision's
    `Resize` and `CenterCrop` have it."""
    height, width = image.shape[:2]
    shorter = min(height, width)
    if shorter != side:
        height, width = (side * length // shorter for length in (height, width))
        image = np.asarray(Image.fromarray(image).resize((width, height), BICUBIC))
    top, left = round((height - side) / 2), round((width - side) / 2)
    return image[top : top + side, left : left + side]


def similarity(a_ND: NDArray[np.float32], b_ND: NDArray[np.float32]) -> float:
    """Cosine between the mean features of two images; 0 if one is all zeros."""
    a, b = a_ND.mean(axis=0), b_ND.mean(axis=0)
    norms = float(np.linalg.norm(a) * np.linalg.norm(b))
    return float(a @ b) / norms if norms else 0.0


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_finite(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
