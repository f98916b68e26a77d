"""The cameras of a robot: what they show at one time, by the names of the policy's inputs.

    cameras = Cameras({"frame": RealSense(serial="..."), "wrist": RealSense(serial="...")})
    cameras.wait()
    seen = cameras.observe()  # an Observation without the robot's state

Pictures belong together if no two were captured further apart than half a period of the fastest
camera. Two cameras that run freely always have such pictures. More of them may have none: then let
them trigger each other, or run faster.
"""

from __future__ import annotations

import contextlib
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from itertools import combinations
from typing import Any

from numpy.typing import NDArray

from ...errors import CameraError, CameraWarning
from ..robot import Observation, Sensor
from .camera import COMMAND, Camera
from .ring import Frame
from .sources import Source

STALE_S = 0.2
"""An older picture is not shown."""
STARTS_S = 10.0
"""How long `wait` is patient."""
LOOKS_S = 0.005
_TRIES = 4

Stamps = Sequence[tuple[float, int]]
"""Capture time and sequence number of the pictures of one camera, the newest first."""


def newest_together(stamps: Mapping[str, Stamps], most_s: float) -> Mapping[str, int] | None:
    """Sequence numbers of the newest pictures, one of each camera, that belong together.

    Args:
        stamps: of each camera.
        most_s: how far apart any two may be.

    Returns:
        None if no pictures belong together.
    """
    places = dict.fromkeys(stamps, 0)
    while all(place < len(stamps[name]) for name, place in places.items()):
        times = {name: stamps[name][place][0] for name, place in places.items()}
        last = max(times, key=times.__getitem__)
        if times[last] - min(times.values()) <= most_s:
            return {name: stamps[name][place][1] for name, place in places.items()}
        # Its partners are all older, and the newest of some one is too old for it.
        places[last] += 1
    return None


class Cameras:
    """Each in a process of its own, from now until `close`."""

    def __init__(
        self,
        sources: Mapping[str, Source],
        *,
        stale_s: float = STALE_S,
        command: Sequence[str] = COMMAND,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """
        Args:
            sources: by the name of the input under which each is shown.
            stale_s: an older picture is an error and not shown. A robot whose description names
                its cameras may say 0.5: the guard then holds it, and stops it (docs/guard.md).
            command: what runs a camera.
            clock: of the stamps.

        Raises:
            ValueError: no camera, one camera or one name twice, or a `stale_s` that is not
                positive.
            CameraError: this system cannot run cameras in processes of their own.
        """
        self.inputs: Mapping[str, Sensor] = _sensors(sources)
        """As a robot's `inputs`."""
        if not stale_s > 0:
            raise ValueError(f"stale_s must be positive, got {stale_s}")
        self._stale_s, self._clock = stale_s, clock
        self._most_s = 0.5 / max(source.rate_hz for source in sources.values())
        self._seen: Observation | None = None
        self._is_closed = False
        self._warned = set[str]()
        self.num_apart = 0
        """How often `observe` found no pictures that belong together."""
        with contextlib.ExitStack() as made:
            self.cameras: Mapping[str, Camera] = {
                name: made.enter_context(contextlib.closing(Camera(source, command)))
                for name, source in sources.items()
            }
            made.pop_all()  # all of them could be made, and `close` closes them

    @property
    def counts(self) -> Mapping[str, Mapping[str, int]]:
        """What was good, wrong, missing and started again, by camera."""
        return {name: camera.counts for name, camera in self.cameras.items()}

    def wait(self, timeout_s: float = STARTS_S) -> None:
        """Until `observe` has something to show.

        Raises:
            CameraError: it has not in time, or never will.
        """
        until = self._clock() + timeout_s
        while True:
            try:
                self.observe()
                break
            except CameraError:
                is_final = any(camera.is_final for camera in self.cameras.values())
                if is_final or self._is_closed or self._clock() >= until:
                    raise
            time.sleep(LOOKS_S)
        for camera in self.cameras.values():
            if camera.warning and camera.warning not in self._warned:
                self._warned.add(camera.warning)
                warnings.warn(camera.warning, CameraWarning, stacklevel=2)

    def observe(self) -> Observation:
        """The newest pictures that belong together, with capture times and frame ids; at once.

        The same observation as long as there are no newer ones. Its arrays are the caller's.

        Raises:
            CameraError: there are none, or none that are fresh; says which camera and why.
        """
        if self._is_closed:
            raise CameraError("the cameras are closed: make new ones")
        for _ in range(_TRIES):
            stamps = {name: camera.ring.stamps() for name, camera in self.cameras.items()}
            together = newest_together(stamps, self._most_s)
            self._check(stamps, together)
            assert together is not None
            if self._seen is not None and self._shown(together) == self._seen.frame_ids:
                return self._seen
            frames = {n: self.cameras[n].ring.read(number) for n, number in together.items()}
            whole = {name: frame for name, frame in frames.items() if frame is not None}
            if len(whole) == len(frames):
                self._seen = self._observation(whole)
                return self._seen
        raise CameraError(
            "the cameras are faster than their pictures can be copied: slow them down"
        )

    def close(self) -> None:
        """End their processes. Calling it twice is fine."""
        self._is_closed = True
        for camera in self.cameras.values():
            camera.close()

    def __enter__(self) -> Cameras:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _check(self, stamps: Mapping[str, Stamps], together: Mapping[str, int] | None) -> None:
        now = self._clock()
        for name, of_one in stamps.items():
            age_s = now - of_one[0][0] if of_one else None
            if age_s is None or age_s > self._stale_s:
                shown = "nothing yet" if age_s is None else f"nothing new for {age_s:.1f} s"
                raise CameraError(f"camera {name!r} shows {shown}: {self.cameras[name].problem}")
        newest = {name: of_one[0][0] for name, of_one in stamps.items()}
        if together is None:
            self.num_apart += 1
            apart_ms = 1e3 * (max(newest.values()) - min(newest.values()))
            raise CameraError(
                f"cameras {', '.join(stamps)}: no pictures within {1e3 * self._most_s:.1f} ms of "
                f"each other, half a period; the newest are {apart_ms:.1f} ms apart: let the "
                "cameras trigger each other, or run faster"
            )
        captured = [dict((n, at) for at, n in stamps[name])[together[name]] for name in together]
        if now - min(captured) > self._stale_s:
            raise CameraError(
                f"cameras {', '.join(stamps)}: the newest pictures that belong together are "
                f"{now - min(captured):.2f} s old"
            )

    def _shown(self, together: Mapping[str, int]) -> dict[str, int]:
        """Frame ids, of depth too."""
        depths = {name: camera.source.depth_name for name, camera in self.cameras.items()}
        own = {depth: together[name] for name, depth in depths.items() if depth is not None}
        return {**together, **own}

    def _observation(self, frames: Mapping[str, Frame]) -> Observation:
        values: dict[str, NDArray[Any]] = {}
        at: dict[str, float] = {}
        for name, frame in frames.items():
            values[name], at[name] = frame.picture, frame.captured_at
            depth_name = self.cameras[name].source.depth_name
            if depth_name is not None and frame.depth is not None:
                values[depth_name], at[depth_name] = frame.depth, frame.captured_at
        numbers = {name: frame.sequence for name, frame in frames.items()}
        return Observation(values, at, self._shown(numbers))


def _sensors(sources: Mapping[str, Source]) -> Mapping[str, Sensor]:
    if not sources:
        raise ValueError("a robot's cameras are at least one, got none")
    for (one, first), (other, second) in combinations(sources.items(), 2):
        if first.name == second.name:
            raise ValueError(f"{one!r} and {other!r} are both {first.name}: a camera is shown once")
    shown: list[tuple[str, Sensor]] = []
    for name, source in sources.items():
        width, height = source.size
        shown.append((name, Sensor("image", (height, width, 3), "uint8")))
        if source.depth_name is not None:
            shown.append((source.depth_name, Sensor("depth", (height, width), "float32", "m")))
    names = [name for name, _ in shown]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"the input {twice[0]!r} is shown twice; give each its own name")
    return dict(shown)
