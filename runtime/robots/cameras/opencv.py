"""V4L2 cameras through OpenCV, where that is installed: JetPack has it, and pip does.

OpenCV waits for a frame up to 10 s, and a camera that was unplugged is not told from a slow one:
whoever waits for this process ends it before.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ...errors import CameraError
from .sources import OpenCV, Opened, Raw, Unusable

SYSTEM = Path("/sys/class/video4linux")


def open_camera(source: OpenCV) -> Opened:
    """The camera at the path of `source`, streaming."""
    try:
        import cv2
    except ImportError as error:
        raise Unusable(
            f"OpenCV cannot be loaded ({error}): install opencv-python-headless, or python3-opencv"
        ) from error
    if not os.path.exists(source.device):
        raise CameraError(f"{source.device}: not connected; plug it in, or correct the path")
    capture = cv2.VideoCapture(os.path.realpath(source.device), cv2.CAP_V4L2)
    if not capture.isOpened():
        raise CameraError(
            f"{source.device}: cannot be opened; is another program using it, and may you "
            "(group video)?"
        )
    width, height = source.size
    capture.set(cv2.CAP_PROP_FRAME_WIDTH, width)
    capture.set(cv2.CAP_PROP_FRAME_HEIGHT, height)
    capture.set(cv2.CAP_PROP_FPS, source.rate_hz)
    rate_hz = capture.get(cv2.CAP_PROP_FPS)
    words = f"{source.device}: runs at {rate_hz:g} Hz, not at {source.rate_hz:g} Hz"
    is_other = rate_hz > 0 and abs(rate_hz - source.rate_hz) > 0.5
    return Opened(_identity(source.device), _frames(cv2, capture, source), words * is_other)


def _identity(device: str) -> str:
    """Name and serial number, as far as the kernel knows them of what is behind the path now."""
    known = SYSTEM / Path(device).resolve().name
    parts = (known / "name", (known / "device").resolve().parent / "serial")
    return " ".join(part.read_text().strip() for part in parts if part.is_file()) or device


def _frames(cv2: Any, capture: Any, source: OpenCV) -> Iterator[Raw | None]:
    number = 0
    while True:
        has_frame, picture_bgr = capture.read()
        if not has_frame:
            raise CameraError(f"{source.device}: gives no frame; was it unplugged?")
        number += 1
        stamp_ms = capture.get(cv2.CAP_PROP_POS_MSEC)
        yield Raw(picture_bgr[..., ::-1], number, stamp_ms / 1e3 if stamp_ms > 0 else None)
