"""TensorFlow's resizing in numpy, bit for bit: antialiased Lanczos-3, and a crop stretched back.
And torch's bilinear one, but for the last bits.

For policies whose pictures were made by TensorFlow; Pillow's Lanczos is another. Sums are taken in
float32, in TensorFlow's order and without fused multiply-add, as its x86 builds do. A product of
matrices would take a third of the time, but moves pixels that lie near one half, each machine
others.

Sources: `tf.image.resize` and `tf.image.crop_and_resize` as documented; for the order of sums
`scale_and_translate_op.cc` and `crop_and_resize_op.cc` of TensorFlow 2.21.
H, W = height and width, R, C = those after resizing.
"""

from __future__ import annotations

import functools

import numpy as np
from numpy.typing import NDArray

RADIUS = np.float32(3)
"""Lobes of the Lanczos window on either side."""
_PI = np.float32(np.pi)
_LEVEL = np.float32(1 / 255)
_SINE = (-0.16666654943701084, 0.008332178146138854, -0.00019517298981385725)
_COSINE = (
    -0.49999999725108224,
    0.041666623324344516,
    -0.001388676379437604,
    2.4390450703564542e-05,
)
"""Factors of x**3, x**5 ... and of x**2, x**4 ... in the sinf of Arm's optimized routines."""
_SHORT_BUFFER = 512
"""Elements: to a buffer that holds two lines numpy copies lines and weights, which takes longer
than the product itself (4.2 against 5.8 ms for 640x480). The setting is one of the thread."""
Taps = tuple[tuple[slice, NDArray[np.float32]], ...]
"""Of each place in the result the places it is a sum of, and their weights [n, 1]."""
Samples = tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.float32]]
"""Of each place in the result its two neighbours, and how far it is from the first."""


def lanczos3(image: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    """uint8 [H, W, 3] -> [R, C, 3], as `tf.image.resize(image, size, "lanczos3", antialias=True)`
    rounded half to even and clipped."""
    height, width = image.shape[:2]
    rows, columns = size
    between = np.empty((rows, width * 3), np.float32)
    _sums(image.reshape(height, -1).astype(np.float32), lanczos3_taps(height, rows), between)
    turned = np.empty((columns, 3 * rows), np.float32)
    _sums(np.ascontiguousarray(between.T).reshape(width, -1), lanczos3_taps(width, columns), turned)
    np.rint(turned, out=turned)
    np.clip(turned, 0, 255, out=turned)
    pixels = turned.astype(np.uint8).reshape(columns, 3, rows)
    return np.ascontiguousarray(pixels.transpose(2, 0, 1))


def central_crop(image: NDArray[np.uint8], area: float) -> NDArray[np.uint8]:
    """The middle of uint8 [H, W, 3], stretched back to [H, W, 3].

    As `tf.image.crop_and_resize` of the box whose sides are the root of `area` in (0, 1], bilinear
    and corner to corner, and `convert_image_dtype` before and after, which cuts off x * 255.5.
    """
    top, bottom, down = crop_samples(image.shape[0], area)
    left, right, across = crop_samples(image.shape[1], area)
    levels = np.multiply(image, _LEVEL, dtype=np.float32)
    wide = _between(levels, (left, right), across[:, None], axis=1)
    whole = _between(wide, (top, bottom), down[:, None, None], axis=0)
    np.multiply(whole, np.float32(255.5), out=whole)
    return whole.astype(np.uint8)


def letterbox(image: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.float32]:
    """uint8 [H, W, 3] in the lower right corner of black [R, C, 3], as large as its aspect allows.

    As `torch.nn.functional.interpolate` of mode "bilinear" has it, without antialiasing, corners
    not aligned. Levels of 0 to 255, not rounded.
    """
    (height, width), (rows, columns) = image.shape[:2], size
    ratio = max(width / columns, height / rows)
    inner = max(int(height / ratio), 1), max(int(width / ratio), 1)
    top, bottom, down = bilinear_samples(height, inner[0])
    left, right, across = bilinear_samples(width, inner[1])
    first, second = ((3 * place[:, None] + np.arange(3)).ravel() for place in (left, right))
    levels = image.reshape(height, -1).astype(np.float32)
    tall = _between(levels, (top, bottom), down[:, None], axis=0)
    whole = _between(tall, (first, second), np.repeat(across, 3), axis=1)
    out = np.zeros((rows, columns, 3), np.float32)
    out[rows - inner[0] :, columns - inner[1] :] = whole.reshape(*inner, 3)
    return out


@functools.cache
def bilinear_samples(num_in: int, num_out: int) -> Samples:
    """Where along an axis the centres of new pixels lie among those of the old ones; what lies
    beyond the first or the last is that one."""
    step = np.float64(np.float32(num_in / num_out))
    exact = step * (np.arange(num_out) + 0.5) - 0.5
    place = np.maximum(exact.astype(np.float32), 0)  # rounded once, as a fused product is
    low = np.minimum(np.floor(place), num_in - 1)
    high = np.minimum(low + 1, num_in - 1)
    samples = low.astype(np.intp), high.astype(np.intp), place - low
    for array in samples:
        array.setflags(write=False)
    return samples


@functools.cache
def lanczos3_taps(num_in: int, num_out: int) -> Taps:
    """The filter along one axis: the Lanczos window, widened where the axis shrinks, summing to 1.

    Weights that fall beyond the edge are left out, and the others grow.
    """
    one, half = np.float32(1), np.float32(0.5)
    inverse = np.float32(1 / np.float64(np.float32(num_out) / np.float32(num_in)))
    widened = max(inverse, one)
    center = (np.arange(num_out, dtype=np.float32) + half) * inverse
    reach = RADIUS * widened
    first = np.maximum(np.ceil(center - reach - half).astype(int), 0)
    last = np.minimum(np.floor(center + reach - half).astype(int), num_in - 1)
    taps = []
    for middle, start, end in zip(center, first, last + 1, strict=True):
        place = np.arange(start, end, dtype=np.float32) + half - middle
        weights = _lanczos3(np.abs(place * (one / widened)))
        total = np.cumsum(weights)[-1]  # from the left
        column = (weights * (one / total))[:, None]
        column.setflags(write=False)
        taps.append((slice(int(start), int(end)), column))
    return tuple(taps)


@functools.cache
def crop_samples(side: int, area: float) -> Samples:
    """Where along an axis the pixels of a central crop lie: its first and last pixel stay there."""
    share = np.sqrt(np.float32(area))
    start = (np.float32(1) - share) / np.float32(2)
    steps = np.float32(side - 1)
    step = ((start + share) - start) * steps / np.float32(max(side - 1, 1))
    place = start * steps + np.arange(side, dtype=np.float32) * step
    low = np.floor(place)
    samples = low.astype(np.intp), np.ceil(place).astype(np.intp), place - low
    for array in samples:
        array.setflags(write=False)
    return samples


def _lanczos3(x: NDArray[np.float32]) -> NDArray[np.float32]:
    """Of distances from 0 on."""
    near = x <= np.float32(1e-3)
    x = np.where(near, np.float32(1), x)
    waves = RADIUS * _sine(_PI * x) * _sine(_PI * x / RADIUS) / (_PI * _PI * x * x)
    x = np.where(x > RADIUS, np.float32(0), waves)
    return np.where(near, np.float32(1), x)


def _sine(x: NDArray[np.float32]) -> NDArray[np.float32]:
    """Of 0 to 100, to the bit as glibc since 2.28, which TensorFlow calls; numpy's is another."""
    wide = x.astype(np.float64)
    quarter = np.floor(wide * (2 / np.pi) + 0.5)
    y = wide - quarter * (np.pi / 2)
    z, turn = y * y, quarter.astype(int)
    (s1, s2, s3), (c1, c2, c3, c4) = _SINE, _COSINE
    sine = y + y * z * (s1 + z * (s2 + z * s3))
    cosine = 1 + z * (c1 + z * (c2 + z * (c3 + z * c4)))
    wave = np.where(turn % 2, cosine, sine)
    return np.where(turn % 4 < 2, wave, -wave).astype(np.float32)


def _sums(lines: NDArray[np.float32], taps: Taps, out: NDArray[np.float32]) -> None:
    """Weighted sums of lines [in, N] to [out, N]."""
    longest = max(len(weights) for _, weights in taps)
    scaled = np.empty((longest, lines.shape[1]), np.float32)
    usual = np.setbufsize(_SHORT_BUFFER)
    try:
        for (places, weights), line in zip(taps, out, strict=True):
            part = np.multiply(lines[places], weights, scaled[: len(weights)])
            np.add.reduce(part, 0, None, line)  # numpy adds whole lines, from the first one on
    finally:
        np.setbufsize(usual)


def _between(
    levels: NDArray[np.float32],
    places: tuple[NDArray[np.intp], NDArray[np.intp]],
    share: NDArray[np.float32],
    axis: int,
) -> NDArray[np.float32]:
    """a + (b - a) * share of what lies at two places of an axis."""
    a, b = (levels.take(place, axis, mode="clip") for place in places)
    np.subtract(b, a, out=b)
    np.multiply(b, share, out=b)
    return np.add(a, b, out=b)
