"""A ring of pictures in memory that processes share: one writes, any number read.

A slot holds one picture, and the sequence number of a slot is written last. A reader looks at it
before and after its copy: where it is another one, or none, the copy is thrown away. So a writer
that dies in the middle of a picture leaves a slot that nobody reads, and readers never wait.

The memory has no name: who opened it passes its descriptor on, and the kernel frees it with the
last process that has it, however that one ends. (multiprocessing.shared_memory has names, so a
process that is killed leaves its memory behind, or a tracker of its own, which up to Python 3.12
frees it for everybody when any process that attached to it ends.)

The trade-off: a reader copies a picture, and keeps no view of the ring.

H, W = image height and width, N = slot.
"""

from __future__ import annotations

import math
import mmap
import os
import threading
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ...errors import CameraError

NUM_SLOTS = 8
"""A quarter of a second at 30 Hz: what pairing may choose from."""
COUNTS = (
    "frames",
    "dropped frames",
    "repeated frame numbers",
    "frame numbers back",
    "stamps back",
    "incomplete frames",
)
"""What the writer counts: good frames, those that never came, and those that were not used."""
_TRIES = 16
_LINE = 64
_HEADER = np.dtype(
    [
        ("newest", "u8"),
        ("alive_at", "f8"),
        ("counts", "i8", len(COUNTS)),
        ("identity", "S256"),
        ("warning", "S512"),
        ("words", "S1024"),
    ]
)
_HEAD = np.dtype(
    [("sequence", "u8"), ("number", "i8"), ("captured_at", "f8"), ("hardware_s", "f8")]
)
_FIRST, _SECOND = threading.Lock(), threading.Lock()


@dataclass(frozen=True, slots=True, eq=False)
class Frame:
    """One picture, a copy of its own."""

    sequence: int
    """In the ring, from 1 on; the same for no two pictures, restarted cameras included."""
    number: int
    """As the camera counts."""
    captured_at: float
    """Seconds on this machine's monotonic clock."""
    hardware_s: float | None
    """The camera's own stamp, in seconds on a clock of its own; None if it has none."""
    picture: NDArray[np.uint8]
    """[H, W, 3] RGB."""
    depth: NDArray[np.float32] | None
    """[H, W] in metres, 0 where nothing was measured; None of a camera that shows none."""


@dataclass(frozen=True, slots=True)
class Layout:
    """Where things lie in the memory.

    Raises:
        ValueError: a picture without pixels, or fewer than two slots.
    """

    height: int
    width: int
    has_depth: bool = False
    num_slots: int = NUM_SLOTS

    def __post_init__(self) -> None:
        if self.height < 1 or self.width < 1 or self.num_slots < 2:
            raise ValueError(
                "a ring needs pictures of at least 1 x 1 and two slots, got "
                f"{self.width} x {self.height} and {self.num_slots}"
            )

    @property
    def parts(self) -> tuple[tuple[np.dtype[np.void] | str, tuple[int, ...]], ...]:
        """Types and shapes of what lies there, in order: header, heads, depths, pictures."""
        size = (self.height, self.width)
        depths = (self.num_slots, *size) if self.has_depth else (0, *size)
        pictures = (self.num_slots, *size, 3)
        return (_HEADER, (1,)), (_HEAD, (self.num_slots,)), ("f4", depths), ("u1", pictures)

    @property
    def num_bytes(self) -> int:
        return sum(_rounded(dtype, shape) for dtype, shape in self.parts)


def _rounded(dtype: np.dtype[np.void] | str, shape: tuple[int, ...]) -> int:
    """Bytes of an array, up to the next cache line."""
    return -(-np.dtype(dtype).itemsize * math.prod(shape) // _LINE) * _LINE


def shared_memory(layout: Layout) -> int:
    """A descriptor of memory for a ring, all zero; the caller closes it.

    Raises:
        CameraError: this system has no memory without a name.
    """
    if not hasattr(os, "memfd_create"):
        raise CameraError("cameras in a process of their own need Linux (memfd_create)")
    descriptor = os.memfd_create("camera")
    os.ftruncate(descriptor, layout.num_bytes)
    return descriptor


class _Ring:
    """Views of the memory behind `descriptor`, which may be closed once this is made."""

    def __init__(self, descriptor: int, layout: Layout, access: int) -> None:
        self.layout = layout
        memory = mmap.mmap(descriptor, layout.num_bytes, access=access)
        views, start = [], 0
        for dtype, shape in layout.parts:
            view = np.frombuffer(memory, dtype, math.prod(shape), start)
            views.append(view.reshape(shape))
            start += _rounded(dtype, shape)
        self._header, self._heads, self._depths, self._pictures = views
        self._newest, self._sequences = self._header["newest"], self._heads["sequence"]

    def noted(self, where: str) -> str:
        """What the writer told in words: `identity`, `warning`, or `words` about its last end."""
        return bytes(self._header[where][0]).decode(errors="replace")


class RingWriter(_Ring):
    """The one process that writes. What an earlier one wrote is gone on with."""

    def __init__(self, descriptor: int, layout: Layout) -> None:
        super().__init__(descriptor, layout, mmap.ACCESS_WRITE)

    def write(
        self,
        picture: NDArray[np.uint8],
        depth: NDArray[np.float32] | None,
        *,
        number: int,
        captured_at: float,
        hardware_s: float | None,
    ) -> int:
        """Copy a picture [H, W, 3], and depth [H, W] if the layout has it, into the next slot.

        Returns:
            Its sequence number.
        """
        sequence = int(self._newest[0]) + 1
        slot = sequence % self.layout.num_slots
        self._sequences[slot] = 0
        _fence()
        np.copyto(self._pictures[slot], picture)
        if depth is not None:
            np.copyto(self._depths[slot], depth)
        stamp = np.nan if hardware_s is None else hardware_s
        self._heads[slot] = (0, number, captured_at, stamp)
        _fence()
        self._sequences[slot] = sequence
        _fence()
        self._newest[0] = sequence
        return sequence

    def beat(self, now: float) -> None:
        """The writer lives, and waits for nothing that does not end."""
        self._header["alive_at"][0] = now

    def count(self, what: str, number: int = 1) -> None:
        """`number` more of `what`, one of `COUNTS`."""
        self._header["counts"][0, COUNTS.index(what)] += number

    def note(self, where: str, words: str) -> None:
        """Tell the readers in words, which `noted` gives them."""
        field = self._header[where]
        field[0] = words.encode()[: field.dtype.itemsize]


class RingReader(_Ring):
    """Of one process."""

    def __init__(self, descriptor: int, layout: Layout) -> None:
        super().__init__(descriptor, layout, mmap.ACCESS_READ)
        self.num_retries = 0
        """Copies that were thrown away, since the writer had overtaken them."""

    @property
    def newest(self) -> int:
        """Sequence number of the last whole picture; 0 if there was none yet."""
        return int(self._newest[0])

    @property
    def alive_at(self) -> float:
        """When the writer last said so; 0 if it never did."""
        return float(self._header["alive_at"][0])

    @property
    def counts(self) -> Mapping[str, int]:
        return dict(zip(COUNTS, self._header["counts"][0].tolist(), strict=True))

    def latest(self) -> Frame | None:
        """The newest picture; None if there was none yet, or the writer is faster than copies."""
        for _ in range(_TRIES):
            newest = self.newest
            if newest == 0:
                return None
            if (frame := self.read(newest)) is not None:
                return frame
        return None

    def read(self, sequence: int) -> Frame | None:
        """The picture of this sequence number; None if another one has its slot by now."""
        slot = sequence % self.layout.num_slots
        if self._sequences[slot] != sequence:
            return None
        _fence()
        _, number, captured_at, hardware_s = self._heads[slot].item()
        frame = Frame(
            sequence,
            number,
            captured_at,
            None if np.isnan(hardware_s) else hardware_s,
            self._pictures[slot].copy(),
            self._depths[slot].copy() if self.layout.has_depth else None,
        )
        _fence()
        if self._sequences[slot] != sequence:
            self.num_retries += 1
            return None
        return frame

    def stamps(self) -> list[tuple[float, int]]:
        """Capture time and sequence number of the pictures that are there, the newest first."""
        newest, found = self.newest, []
        _fence()
        for sequence in range(newest, max(0, newest - self.layout.num_slots + 1), -1):
            slot = sequence % self.layout.num_slots
            captured_at = float(self._heads["captured_at"][slot])
            _fence()
            if self._sequences[slot] == sequence:
                found.append((captured_at, sequence))
        return found


def _fence() -> None:
    """What is above is written and read before what is below, on processors that reorder too.

    A lock keeps what is above from sinking below its release, and what is below from rising above
    its acquisition; one release and, after it, one acquisition therefore part the two.
    """
    with _FIRST:
        pass
    with _SECOND:
        pass
