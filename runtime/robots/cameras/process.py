"""The process that owns one camera: opens it, checks its frames, writes them into the ring.

    python -m runtime.robots.cameras.process DESCRIPTOR PARENT SOURCE

`runtime.robots.cameras.camera` starts it. Whatever goes wrong ends it, with a word in the ring: a
camera that was unplugged, a library that hangs and one that crashes are then mended in one way, by
a fresh process. It also ends with the process that started it.
"""

from __future__ import annotations

import contextlib
import math
import os
import sys
import threading
import time
from collections.abc import Sequence

import numpy as np

from ...errors import CameraError
from .checks import FrameChecks
from .ring import RingWriter
from .sources import Opened, Raw, Source, Unusable, decode

OVER, LOST, UNUSABLE = 0, 1, 3
"""How it ends: a recording is over, the camera is to be opened again, or that is of no use."""
SILENT_S = 0.5
"""Without a good frame, or three periods of a slow camera: it is lost."""
FIRST_S = 4.0
"""The same before the first one: cameras take a while to set their exposure."""
WAITS_S, RETRIES_S = 30.0, 0.5
"""How long a process looks for a camera that is not there, and how often; then a fresh one does."""
ORPHANED_S = 0.25


def main(arguments: Sequence[str]) -> int:
    """`run` for as long as the process lives that started this one.

    Args:
        arguments: the descriptor of the ring's memory, the process that started this one, and the
            source.
    """
    descriptor, parent, source = int(arguments[0]), int(arguments[1]), decode(arguments[2])
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    return run(source, RingWriter(descriptor, source.layout))


def run(source: Source, ring: RingWriter) -> int:
    """Open a camera, and write its good frames into the ring until it ends.

    Returns:
        `OVER`, `LOST` or `UNUSABLE`; why, the ring says.
    """
    try:
        opened = _opened(source, ring)
        _recognize(ring, opened, source)
        with contextlib.closing(opened.frames):  # type: ignore[type-var]  # they are generators
            _write(ring, opened, source)
        ring.note("words", f"{source.name}: is over")
        return OVER
    except Exception as error:
        known_one = isinstance(error, CameraError)
        words = str(error) if known_one else f"{source.name}: {type(error).__name__}: {error}"
        ring.note("words", words)
        return UNUSABLE if isinstance(error, Unusable) else LOST


def _opened(source: Source, ring: RingWriter) -> Opened:
    """The camera, as soon as it is there: to look for it again costs less than a new process."""
    begin = time.monotonic()
    while True:
        ring.beat(time.monotonic())
        try:
            return source.open()
        except CameraError as error:
            if isinstance(error, Unusable) or time.monotonic() - begin >= WAITS_S:
                raise
            ring.note("words", str(error))
        time.sleep(RETRIES_S)


def _recognize(ring: RingWriter, opened: Opened, source: Source) -> None:
    if (before := ring.noted("identity")) not in ("", opened.identity):
        raise CameraError(
            f"{source.name}: is another camera than before ({opened.identity}, not {before}); "
            "plug the cameras in as they were"
        )
    ring.note("identity", opened.identity)
    ring.note("warning", opened.warning)


def _write(ring: RingWriter, opened: Opened, source: Source) -> None:
    """Good frames into the ring, until there are no more."""
    checks = FrameChecks(ring.count)
    good_at = opened_at = time.monotonic()
    silent_s = math.inf if source.is_recorded else max(SILENT_S, 3 / source.rate_hz)
    patience_s = max(FIRST_S, silent_s)
    for raw in opened.frames:
        now = time.monotonic()
        ring.beat(now)
        if raw is not None and (captured_at := _judged(ring, checks, raw, source, now)) is not None:
            ring.write(
                raw.picture,
                raw.depth,
                number=raw.number,
                captured_at=captured_at,
                hardware_s=raw.stamp_s,
            )
            if good_at == opened_at:
                ring.note("words", "")
            good_at, patience_s = now, silent_s
        elif now - good_at > patience_s:
            raise CameraError(
                f"{source.name}: no good frame for {now - good_at:.1f} s "
                f"({'frames come and are not new' if raw else 'none comes'}); is it unplugged?"
            )


def _judged(
    ring: RingWriter, checks: FrameChecks, raw: Raw, source: Source, now: float
) -> float | None:
    """When the frame was captured; None if it may not be used."""
    layout = source.layout
    if raw.picture.dtype != np.uint8 or raw.picture.shape != (layout.height, layout.width, 3):
        raise Unusable(
            f"{source.name}: shows {raw.picture.dtype} {list(raw.picture.shape)}, expected uint8 "
            f"[{layout.height}, {layout.width}, 3]; say the size that it has"
        )
    if layout.has_depth and raw.depth is None:
        ring.count("incomplete frames")
        return None
    return checks.captured_at(raw.number, raw.stamp_s, now)


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(ORPHANED_S)
    os._exit(LOST)


if __name__ == "__main__":
    os._exit(main(sys.argv[1:]))  # a library that hangs when it is taken down is left to the kernel
