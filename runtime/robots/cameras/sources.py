"""What a camera can be: data that the camera's process gets, and opens there.

Sizes are width and height in pixels, as `--image-size` has them; pictures are [H, W, 3].
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import msgspec
import numpy as np
from numpy.typing import NDArray

from ...errors import CameraError
from .ring import Layout


@dataclass(frozen=True, slots=True, eq=False)
class Raw:
    """A frame as a camera gives it."""

    picture: NDArray[np.uint8]
    """[H, W, 3] RGB, which is the camera's and changes with its next frame."""
    number: int
    """As the camera counts; of one that does not, the frames that were read."""
    stamp_s: float | None
    """Of the camera, in seconds on a clock of its own."""
    depth: NDArray[np.float32] | None = None
    """[H, W] in metres, of a camera that is asked for it; None where that is missing."""


@dataclass(frozen=True, slots=True)
class Opened:
    """A camera that is open."""

    identity: str
    """What tells this device from another one of its make."""
    frames: Iterator[Raw | None]
    """None, every 0.1 s or so, where there is no new frame yet. It ends with a recording, and
    raises `CameraError` where a camera was unplugged. Closing it closes the camera."""
    warning: str = ""
    """What is not as it should be, though it works."""


class Source(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What every camera has.

    Raises:
        ValueError: a size or a rate that no camera has.
    """

    size: tuple[int, int]
    """Width and height of its pictures."""
    rate_hz: float = 30
    """Frames per second."""

    def __post_init__(self) -> None:
        if min(self.size) < 1 or not 0 < self.rate_hz <= 1000:
            raise ValueError(
                f"{self.name}: a camera needs a size of at least 1 x 1 and a rate in (0, 1000] Hz, "
                f"got {self.size[0]} x {self.size[1]} at {self.rate_hz:g} Hz"
            )

    @property
    def layout(self) -> Layout:
        return Layout(self.size[1], self.size[0], self.depth_name is not None)

    @property
    def depth_name(self) -> str | None:
        """Of the input that shows its depth."""
        return None

    @property
    def is_recorded(self) -> bool:
        """Whether it may show nothing for any time, since nothing did when it was recorded."""
        return False

    @property
    def name(self) -> str:
        """In messages: the same for no two devices."""
        raise NotImplementedError

    def open(self) -> Opened:
        """In the process of the camera.

        Raises:
            CameraError: it is not there, for now.
            Unusable: it never will be, as things are.
        """
        raise NotImplementedError


class Unusable(CameraError):
    """Opening it again is of no use: a library, a file or a mode is missing."""


class Recorded(Source, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What was recorded; it is played once."""

    path: str

    @property
    def is_recorded(self) -> bool:
        return True

    @property
    def name(self) -> str:
        return self.path


class RealSense(Source, frozen=True, kw_only=True, forbid_unknown_fields=True, tag=True):
    """A RealSense camera, through pyrealsense2 2.56 or newer."""

    serial: str
    """As `rs-enumerate-devices` shows it; it tells two cameras apart in any socket."""
    size: tuple[int, int] = (640, 480)
    depth: str | None = None
    """Name of the input that shows depth in metres, of the same size, as the depth sensor sees it:
    its pixels are not moved to those of the colour sensor. None: none is measured."""

    @property
    def depth_name(self) -> str | None:
        return self.depth

    @property
    def name(self) -> str:
        return f"RealSense {self.serial}"

    def open(self) -> Opened:
        from .realsense import open_camera

        return open_camera(self)


class RealSenseFile(Recorded, frozen=True, kw_only=True, forbid_unknown_fields=True, tag=True):
    """What the RealSense SDK recorded: a .db3 file, or a .bag where the SDK reads those.

    It is played once, as fast as it was recorded, with the frame numbers and stamps of the camera.
    """

    depth: str | None = None
    """As of `RealSense`."""

    @property
    def depth_name(self) -> str | None:
        return self.depth

    def open(self) -> Opened:
        from .realsense import open_file

        return open_file(self)


class OpenCV(Source, frozen=True, kw_only=True, forbid_unknown_fields=True, tag=True):
    """A V4L2 camera, through OpenCV. It has no frame numbers, so what it drops is not counted."""

    device: str
    """Such as /dev/v4l/by-id/...: /dev/video0 may be another camera once one was unplugged."""

    @property
    def name(self) -> str:
        return self.device

    def open(self) -> Opened:
        from .opencv import open_camera

        return open_camera(self)


class VideoFile(Recorded, frozen=True, kw_only=True, forbid_unknown_fields=True, tag=True):
    """A film such as an MP4, through PyAV; played once, at the times of its frames."""

    def open(self) -> Opened:
        from .recorded import open_video

        return open_video(self)


class RecordedEpisode(Recorded, frozen=True, kw_only=True, forbid_unknown_fields=True, tag=True):
    """A camera of a recorded episode: a .npz file, a folder of them, or a LeRobot dataset."""

    index: int = 0
    """Which episode of several."""
    stream: str = "frame"
    """What the camera is called in it."""
    camera: str | None = None
    """Key of the camera in a LeRobot dataset that has several."""

    @property
    def name(self) -> str:
        return f"{self.path} episode {self.index} {self.camera or self.stream}"

    def open(self) -> Opened:
        from .recorded import open_episode

        return open_episode(self)


AnySource = RealSense | RealSenseFile | OpenCV | VideoFile | RecordedEpisode


def encode(source: Source) -> str:
    """As text, to hand to another process."""
    return msgspec.json.encode(source).decode()


def decode(text: str) -> Source:
    """What `encode` gave."""
    source: Source = msgspec.json.decode(text, type=AnySource)
    return source
