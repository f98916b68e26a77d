"""Pictures of one size as PNG in one array of bytes: lossless, and several times smaller.

N = picture, H, W = image height and width.
"""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..errors import RecordingError


def encode_pictures(
    images: NDArray[np.uint8],
) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """RGB pictures [N, H, W, 3] -> their bytes one after the other, and where each one begins,
    [N + 1], the end included."""
    files = [_encode_png(image) for image in images]
    png = np.frombuffer(b"".join(files), np.uint8)
    return png, np.cumsum([0, *map(len, files)], dtype=np.int64)


def decode_pictures(png: NDArray[Any], offsets: NDArray[Any]) -> NDArray[np.uint8]:
    """The pictures of `encode_pictures`, [N, H, W, 3].

    Raises:
        RecordingError: what is damaged, by the number of the picture.
    """
    for name, array, dtype, axes in (
        ("png", png, np.uint8, "[bytes]"),
        ("png_offsets", offsets, np.int64, "[N + 1]"),
    ):
        if array.dtype != dtype or array.ndim != 1:
            raise RecordingError(
                f"{name} must be {np.dtype(dtype)} {axes}, "
                f"got {array.dtype} with shape {list(array.shape)}; record it again"
            )
    bounds = [int(offset) for offset in offsets.tolist()]
    if len(bounds) < 2 or bounds[0] != 0 or bounds[-1] != len(png) or bounds != sorted(bounds):
        raise RecordingError(
            f"png_offsets must rise from 0 to {len(png)}, the bytes in png, got "
            f"{bounds[:1]} to {bounds[-1:]} in {len(bounds)} values; copy or record it again"
        )
    data = png.tobytes()
    frames = [
        decode_png(data[start:end], index)
        for index, (start, end) in enumerate(zip(bounds, bounds[1:], strict=False))
    ]
    shapes = {frame.shape for frame in frames}
    if len(shapes) != 1:
        raise RecordingError(f"frames must all have one shape, got {sorted(shapes)}")
    return np.stack(frames)


def encode_png_quickly(image: NDArray[np.uint8]) -> bytes:
    """An RGB picture [H, W, 3] as PNG (ISO 15948), some ten times faster than the smallest one.

    numpy and zlib let other threads run meanwhile, which Pillow does not: a control loop goes on.
    """
    height, width, _ = image.shape
    rows = np.empty((height, 1 + 3 * width), np.uint8)
    rows[:, 0] = 2  # filter "up": each row less the one above it
    flat = image.reshape(height, 3 * width)
    rows[:1, 1:] = flat[:1]
    np.subtract(flat[1:], flat[:-1], out=rows[1:, 1:])
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(rows.data, 1)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    )


def _encode_png(image: NDArray[np.uint8]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def decode_png(data: bytes, index: int) -> NDArray[np.uint8]:
    """A picture [H, W, 3].

    Raises:
        RecordingError: it is damaged; says its number, `index`.
    """
    try:
        with Image.open(io.BytesIO(data), formats=("PNG",)) as image:
            return np.asarray(image.convert("RGB"))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise RecordingError(
            f"frame {index} is not a whole PNG ({error}); copy or record it again"
        ) from error
