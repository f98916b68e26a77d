"""Camera image -> patches as a network, for a machine whose GPU resizes sooner than its CPU.

Along each axis, Pillow's bicubic resize is a product with a band matrix of 22-bit integers, rounded
to 8 bits (Pillow, `Resample.c`). Split into a high and a low part of at most 12 bits, the integers
and all sums are exact in float32, and the factors even in TensorFloat-32. So the resized image is
Pillow's to the bit in whatever order a machine adds. Normalising is plain float32: within 2 ulp of
the image processor where a machine's division is not exact.

H, W = image height and width, R, C = rows and columns of the resized image, N = patches.
"""

from __future__ import annotations

import functools

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import nn

from runtime.image import BICUBIC, ImageConfig

PRECISION_BITS = 22
LOW_BITS = 12
EXACT = 1 << 24
"""Whole numbers up to this one are exact in float32."""


class PixelsEngine(nn.Module):
    """Resizes, normalises and cuts images of one size.

    Args:
        image: how an image is prepared.
        size: height and width of the camera's images.
        grid: rows and columns of patches.

    Raises:
        ValueError: the image is prepared as TensorFlow does it, is resized twice or shrinks too
            much for exact sums, or Pillow does not resize axis by axis.
    """

    def __init__(self, image: ImageConfig, size: tuple[int, int], grid: tuple[int, int]) -> None:
        super().__init__()
        self.image, self.grid = image, grid
        rows, columns = (side * image.patch_size for side in grid)
        if stated := image.as_tensorflow + image.as_torch:
            raise ValueError(
                f"an image is prepared as {'torch' if image.as_torch else 'TensorFlow'} does it "
                f"({', '.join(stated)}), which engines do not: let the host resize it"
            )
        if image.do_center_crop and size[0] != size[1]:
            raise ValueError(
                "the middle is cut from images that are not square, which engines do not: let the "
                "host resize it"
            )
        if image.size not in (None, (rows, columns)):
            raise ValueError(
                f"an image is brought to {image.size[0]}x{image.size[1]} and then to "
                f"{rows}x{columns}: let the host resize it"
            )
        self.passes = _passes(size, (rows, columns))
        """Axes along which the image is resized: the matrices of the others are not there."""
        if "vertical" in self.passes:
            self.register_buffer("rows", _split_coefficients(size[0], rows))
        if "horizontal" in self.passes:
            self.register_buffer("columns", _split_coefficients(size[1], columns).T.contiguous())
        mean, std = (torch.tensor(v).reshape(3, 1, 1) for v in (image.image_mean, image.image_std))
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)
        # High and low part: the product with 8 bits of a pixel is rounded once, as in float64.
        high = np.float32(np.round(image.rescale_factor * 2**20) / 2**20)
        self.scale = float(high), float(np.float32(image.rescale_factor - float(high)))
        self.matrices = tuple(name for name in ("rows", "columns") if hasattr(self, name))
        """Names of the buffers that hold them."""
        self.rows: torch.Tensor
        self.columns: torch.Tensor
        self.mean: torch.Tensor
        self.std: torch.Tensor

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """uint8 [H, W, 3] -> float32 [N, patch_dim]."""
        x = image.to(torch.float32).permute(2, 0, 1)
        for axis in self.passes:
            if axis == "vertical":
                x = _rounded(*(self.rows @ x).chunk(2, dim=1))
            else:
                x = _rounded(*(x @ self.columns).chunk(2, dim=2))
        high, low = self.scale
        x = ((x * high + x * low) - self.mean) / self.std
        return self._cut(x)

    def _cut(self, x: torch.Tensor) -> torch.Tensor:
        """[3, R, C] -> patches, grouped by merge block; every frame of a patch is the image."""
        m, p = self.image.merge_size, self.image.patch_size
        rows, columns = self.grid
        x = x.reshape(3, rows // m, m, p, columns // m, m, p).permute(1, 4, 2, 5, 0, 3, 6)
        x = x.reshape(rows * columns, 3, 1, p * p)
        x = torch.cat([x] * self.image.temporal_patch_size, dim=2)
        return x.reshape(rows * columns, self.image.patch_dim)


def coefficients(num_in: int, num_out: int) -> NDArray[np.int64]:
    """Pillow's bicubic filter [num_out, num_in] along one axis, in units of 2**-22.

    The filter of Keys (1981) with a = -0.5, widened where the axis shrinks; each row's float64
    weights are scaled to sum 1 and rounded half away from zero.
    """
    scale = num_in / num_out
    widened = max(scale, 1.0)
    support = 2.0 * widened
    center = (np.arange(num_out)[:, None] + 0.5) * scale
    first = np.maximum((center - support + 0.5).astype(np.int64), 0)
    end = np.minimum((center + support + 0.5).astype(np.int64), num_in)
    place = np.arange(num_in)[None, :]
    weights = _bicubic((place - center + 0.5) * (1.0 / widened))
    weights = np.where((first <= place) & (place < end), weights, 0.0)
    weights /= np.cumsum(weights, axis=1)[:, -1:]  # added from the left, as Pillow does
    return np.trunc(weights * (1 << PRECISION_BITS) + np.copysign(0.5, weights)).astype(np.int64)


def _bicubic(x: NDArray[np.float64]) -> NDArray[np.float64]:
    a, x = -0.5, np.abs(x)
    near = ((a + 2.0) * x - (a + 3.0)) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * a
    return np.where(x < 1.0, near, np.where(x < 2.0, far, 0.0))


def _split_coefficients(num_in: int, num_out: int) -> torch.Tensor:
    """float32 [2 num_out, num_in]: high parts, then low parts.

    Raises:
        ValueError: their sums over 8-bit pixels would not be exact.
    """
    whole = coefficients(num_in, num_out)
    high = (whole + (1 << LOW_BITS - 1)) >> LOW_BITS
    low = whole - (high << LOW_BITS)
    largest = 255 * max(np.abs(part).sum(axis=1).max() for part in (high, low))
    if largest + (1 << PRECISION_BITS - 1) >= EXACT:
        raise ValueError(
            f"resizing {num_in} pixels to {num_out} takes sums that float32 does not hold: let the "
            "camera deliver a smaller image, or let the host resize it"
        )
    return torch.from_numpy(np.concatenate([high, low]).astype(np.float32))


def _rounded(high: torch.Tensor, low: torch.Tensor) -> torch.Tensor:
    """(high * 2**12 + low) * 2**-22 rounded to a whole number of 0 to 255, half up."""
    carry = torch.floor((low + 2.0 ** (PRECISION_BITS - 1)) * 2.0**-LOW_BITS)
    return torch.clamp(torch.floor((high + carry) * 2.0 ** (LOW_BITS - PRECISION_BITS)), 0, 255)


def _passes(size: tuple[int, int], resized: tuple[int, int]) -> tuple[str, ...]:
    """Axes in Pillow's order, those left out that keep their length."""
    order = {"horizontal": ("horizontal", "vertical"), "vertical": ("vertical", "horizontal")}
    first = first_pass(*size, *resized)
    if first is None:
        raise ValueError(
            "this Pillow does not resize one axis after the other: let the host resize the image"
        )
    changed = {"vertical": size[0] != resized[0], "horizontal": size[1] != resized[1]}
    return tuple(axis for axis in order[first] if changed[axis])


@functools.cache
def first_pass(height: int, width: int, rows: int, columns: int) -> str | None:
    """The axis along which Pillow resizes first, or None if two passes are not what it does.

    Learned from Pillow itself: 12.3 and 13.0 choose differently where an image grows in width and
    shrinks in height.
    """
    random = np.random.Generator(np.random.Philox(key=0))
    picture = Image.fromarray(random.integers(0, 256, (height, width, 3), np.uint8))
    whole = np.asarray(picture.resize((columns, rows), BICUBIC))
    for name, between in (("horizontal", (columns, height)), ("vertical", (width, rows))):
        twice = picture.resize(between, BICUBIC).resize((columns, rows), BICUBIC)
        if np.array_equal(whole, np.asarray(twice)):
            return name
    return None
