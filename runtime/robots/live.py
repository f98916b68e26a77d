"""A robot of the real world in five methods: connect, read, command, halt and disconnect.

What `Robot` promises besides is kept here: the order of calls, copies of what a driver may write
into again, numbers of pictures, stamps that go forward, limits, and an end on every path. What is
read is shown again for `REREAD_S`, then read anew, however long nobody sent anything.

Stamps are seconds of `time.monotonic()`.
"""

from __future__ import annotations

import abc
import atexit
import contextlib
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from types import TracebackType
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from ..errors import RobotError
from .robot import Limits, Observation, Sensor

REREAD_S = 0.01
"""An observation younger than this is shown again: a tick looks more than once."""
DEAD_S = 1.0
"""A value older than this ends the episode. A guard with a description stops before."""

Reading = tuple[NDArray[Any], float]
"""A value, and when it was captured."""
Live = TypeVar("Live", bound="LiveRobot")


class LiveRobot(abc.ABC):
    """Inherit and give `instruction`, `inputs` and `limits`; see `Robot` for what they are. A
    constructor of your own calls `super().__init__()`.

    Use it as a context manager, or `close` it: however an episode ends, the robot is disconnected,
    at the end of the process if nothing else does it.
    """

    instruction: str
    inputs: Mapping[str, Sensor]
    limits: Limits
    now: Callable[[], float] = staticmethod(time.monotonic)

    def __init__(self) -> None:
        self.refused: Counter[str] = Counter()
        """Readings that were not taken, by name and why; the last good one was shown instead."""
        self._is_connected = self._is_running = False
        self._seen: Observation | None = None
        self._read_at = 0.0

    @abc.abstractmethod
    def connect(self) -> None:
        """Called by the first `reset`. If it raises, `disconnect` is called too."""

    @abc.abstractmethod
    def read(self) -> Mapping[str, Reading]:
        """The newest value of every input, and when it was captured. They are copied."""

    @abc.abstractmethod
    def command(self, action_A: NDArray[np.float32]) -> NDArray[np.float32] | None:
        """Carry out an action [A] within the limits; what of it was, where that is less."""

    @abc.abstractmethod
    def halt(self) -> None:
        """Stand still: see `Robot.hold`."""

    @abc.abstractmethod
    def disconnect(self) -> None:
        """Free what `connect` took, as much of it as was taken."""

    def reset(self) -> Observation:
        if not self._is_connected:
            self._is_connected = True
            atexit.register(self.close)
        self._seen = None
        try:
            if not self._is_running:
                with self._words("connect"):
                    self.connect()
            self._is_running = True
            return self.observe()
        except BaseException:
            with contextlib.suppress(RobotError):  # the first error is the one to tell
                self.close()
            raise

    def observe(self) -> Observation:
        self._require_reset("observe")
        now = self.now()
        if self._seen is not None and now - self._read_at < REREAD_S:
            return self._seen
        with self._words("read"):
            readings = self.read()
        self._seen, self._read_at = self._taken(readings), self.now()
        return self._seen

    def send(self, action_A: NDArray[np.float32]) -> NDArray[np.float32]:
        self._require_reset("send")
        within_A = self.limits.clip(action_A)
        with self._words("command"):
            sent_A = self.command(within_A.copy())
        self._read_at = -np.inf
        return within_A if sent_A is None else sent_A

    def hold(self) -> None:
        self._require_reset("hold")
        with self._words("halt"):
            self.halt()
        self._read_at = -np.inf

    @property
    def done(self) -> bool:
        """A real robot goes on until the loop's `max_steps`, or somebody ends it."""
        return False

    @property
    def success(self) -> bool | None:
        return None

    def close(self) -> None:
        self._is_running, self._seen = False, None
        if self._is_connected:
            self._is_connected = False
            atexit.unregister(self.close)
            with self._words("disconnect"):
                self.disconnect()

    def __enter__(self: Live) -> Live:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        if error is None:
            self.close()
        else:
            with contextlib.suppress(RobotError):  # the first error is the one to tell
                self.close()

    def _taken(self, readings: Mapping[str, Reading]) -> Observation:
        """What was read, checked and copied; the last one's where it is not newer."""
        values, stamps, frame_ids = dict[str, NDArray[Any]](), dict[str, float](), dict[str, int]()
        last = self._seen
        for name, sensor in self.inputs.items():
            if name not in readings:
                raise RobotError(f"read gave no {name!r}, only {', '.join(readings) or 'nothing'}")
            value, at = readings[name]
            self._check(name, sensor, value, at)
            is_new = last is None or at > last.at[name]
            if last is not None and not is_new:
                if at < last.at[name]:
                    self.refused[f"{name}: captured before the last"] += 1
                value, at = last.values[name], last.at[name]
            values[name], stamps[name] = value.copy() if is_new else value, at
            if sensor.kind != "vector":
                frame_ids[name] = 0 if last is None else last.frame_ids[name] + is_new
        return Observation(values, stamps, frame_ids)

    def _check(self, name: str, sensor: Sensor, value: NDArray[Any], at: float) -> None:
        found = f"{value.dtype} {list(value.shape)}"
        if found != f"{np.dtype(sensor.dtype)} {list(sensor.shape)}":
            raise RobotError(
                f"read gave {name!r} as {found}, inputs declares {sensor.dtype} "
                f"{list(sensor.shape)}: convert it in read, or declare what the robot has"
            )
        if sensor.kind == "vector" and not np.isfinite(value).all():
            raise RobotError(f"read gave {name!r} as {value.tolist()}: see to the encoders")
        if not (age := self.now() - at) <= DEAD_S:
            raise RobotError(
                f"{name!r} was captured {age:.2f} s ago, more than {DEAD_S:g} s: see to the camera "
                "or the cable; if they are well, its stamps are not of time.monotonic()"
            )

    @contextlib.contextmanager
    def _words(self, method: str) -> Iterator[None]:
        """What a driver raises, as an error of the robot."""
        try:
            yield
        except RobotError:
            raise
        except Exception as error:
            raise RobotError(
                f"{type(self).__name__}.{method} failed: {type(error).__name__}: {error}; see to "
                "the robot's cable, power and driver"
            ) from error

    def _require_reset(self, method: str) -> None:
        if not self._is_running:
            raise RobotError(f"{method}() outside an episode: call reset() first")
