"""Pillow's bicubic resize, to the bit, shared among threads.

Pillow makes two passes, each along one axis and rounded to 8 bits. Along an axis every line is on
its own, so a strip of a pass is what the whole pass has there. Which axis comes first is Pillow's
choice: 12.3 and 13.0 choose differently where an image grows in width and shrinks in height. So it
is learned from Pillow itself, once for every pair of sizes.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray
from PIL import Image

BICUBIC = Image.Resampling.BICUBIC
MAX_THREADS = 4
"""With more, what Python itself does in every strip outweighs what they save."""

Take = Callable[[NDArray[np.uint8], slice, slice], None]
"""(part of the resized image, which rows and which columns of it, counted in units)."""


class Resizer:
    """Resizes images of any size to one size.

    Args:
        rows: of the resized image, a multiple of `unit`.
        columns: the same.
        unit: side of the squares that no part cuts through.
        num_threads: that share an image; by default one per CPU of this process, at most
            `MAX_THREADS`.
    """

    def __init__(self, rows: int, columns: int, unit: int, num_threads: int | None = None) -> None:
        self.rows, self.columns, self.unit = rows, columns, unit
        self.num_threads = num_threads or min(len(os.sched_getaffinity(0)), MAX_THREADS)

    def __call__(self, image: NDArray[np.uint8], take: Take) -> None:
        """Give `take` all of the resized `image` uint8 [H, W, 3], in parts, from several threads.

        Parts do not overlap. An image that has the size already is given as it is.
        """
        height, width = image.shape[:2]
        everything = slice(None)
        if (height, width) == (self.rows, self.columns):
            take(image, everything, everything)
            return
        first = None
        if self.num_threads > 1:
            first = first_pass(height, width, self.rows, self.columns)
        if first is None:
            resized = Image.fromarray(image).resize((self.columns, self.rows), BICUBIC)
            take(np.asarray(resized), everything, everything)
        elif first == "horizontal":
            self._horizontal_first(image, take)
        else:
            self._vertical_first(image, take)

    def _horizontal_first(self, image: NDArray[np.uint8], take: Take) -> None:
        height = image.shape[0]
        between = Image.new("RGB", (self.columns, height), None)  # not filled

        def widen(start: int, stop: int) -> None:
            strip = Image.fromarray(image[start:stop])
            between.paste(strip.resize((self.columns, stop - start), BICUBIC), (0, start))

        def finish(start: int, stop: int) -> None:
            strip = between.crop((start * self.unit, 0, stop * self.unit, height))
            resized = strip.resize((strip.width, self.rows), BICUBIC)
            take(np.asarray(resized), slice(None), slice(start, stop))

        self._share(widen, height)
        self._share(finish, self.columns // self.unit)

    def _vertical_first(self, image: NDArray[np.uint8], take: Take) -> None:
        width = image.shape[1]
        between = Image.new("RGB", (width, self.rows), None)

        def shorten(start: int, stop: int) -> None:
            strip = Image.fromarray(image[:, start:stop])
            between.paste(strip.resize((stop - start, self.rows), BICUBIC), (start, 0))

        def finish(start: int, stop: int) -> None:
            strip = between.crop((0, start * self.unit, width, stop * self.unit))
            resized = strip.resize((self.columns, strip.height), BICUBIC)
            take(np.asarray(resized), slice(start, stop), slice(None))

        self._share(shorten, width)
        self._share(finish, self.rows // self.unit)

    def _share(self, work: Callable[[int, int], None], count: int) -> None:
        """Call `work` for every part of `range(count)`, one part per thread."""
        num_parts = min(self.num_threads, count)
        edges = [part * count // num_parts for part in range(num_parts + 1)]
        for _ in _threads(os.getpid()).map(work, edges[:-1], edges[1:]):
            pass  # what a thread raises is raised here


@functools.cache
def first_pass(height: int, width: int, rows: int, columns: int) -> str | None:
    """The axis along which Pillow resizes first, or None if two passes are not what it does."""
    random = np.random.Generator(np.random.Philox(key=0))
    picture = Image.fromarray(random.integers(0, 256, (height, width, 3), np.uint8))
    whole = np.asarray(picture.resize((columns, rows), BICUBIC))
    for name, between in (("horizontal", (columns, height)), ("vertical", (width, rows))):
        twice = picture.resize(between, BICUBIC).resize((columns, rows), BICUBIC)
        if np.array_equal(whole, np.asarray(twice)):
            return name
    return None


@functools.cache
def _threads(process: int) -> ThreadPoolExecutor:
    """Of this process: a fork takes no threads along. They sleep when there is nothing to do."""
    return ThreadPoolExecutor(MAX_THREADS, thread_name_prefix="resize")
