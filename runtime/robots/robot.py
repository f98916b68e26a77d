"""The robot as the control loop sees it.

S = vector length, A = action dimension, H, W = image height and width.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, get_args

import numpy as np
from numpy.typing import NDArray

from ..errors import RobotError

Kind = Literal["image", "depth", "vector", "video"]
_AXES: Mapping[str, tuple[str, ...]] = {
    "image": ("H", "W", "3"),
    "depth": ("H", "W"),
    "vector": ("S",),
    "video": ("frames", "H", "W", "3"),
}
OLDEST_IMAGE_S, OLDEST_STATE_S = 0.2, 0.1
"""At the start of a thought; on an older one none may start."""
AHEAD_S = 0.01
"""A stamp later than now by more is of another clock."""


@dataclass(frozen=True, slots=True, eq=False)
class Observation:
    """What the robot sees and feels at one control step.

    Raises:
        ValueError: nothing is observed, a value without its stamp, or a stamp or frame id of
            nothing.
    """

    values: Mapping[str, NDArray[Any]]
    """By the name of the policy's input: `frame`, a camera's picture, uint8 [H, W, 3] RGB; `state`,
    float32 [S] in robot units. Whoever reads them cannot write them."""
    at: Mapping[str, float]
    """When each was captured, in seconds on a clock of the robot that only goes forward."""
    frame_ids: Mapping[str, int] = field(default_factory=dict)
    """Of cameras: the same number is the same picture."""

    def __post_init__(self) -> None:
        if not self.values:
            raise ValueError("an observation needs at least one value, got none")
        if self.values.keys() != self.at.keys():
            raise ValueError(
                f"an observation of {_words(self.values)} has stamps of {_words(self.at)}; "
                "give each value the time at which it was captured"
            )
        if unknown := sorted(self.frame_ids.keys() - self.values.keys()):
            raise ValueError(
                f"an observation of {_words(self.values)} has a frame id of {unknown[0]!r}; "
                "frame ids are of its cameras"
            )
        views = {name: value.view() for name, value in self.values.items()}
        for view in views.values():
            view.setflags(write=False)
        object.__setattr__(self, "values", views)

    @property
    def observed_at(self) -> float:
        """The oldest stamp: nothing in it is older."""
        return min(self.at.values())


@dataclass(frozen=True, slots=True)
class Sensor:
    """What `Robot.observe` gives under one name.

    Raises:
        ValueError: there is no such kind, or a value of it has another shape.
    """

    kind: Kind
    shape: tuple[int, ...]
    """image [H, W, 3], depth [H, W], vector [S], video [frames, H, W, 3]."""
    dtype: str
    """In numpy's words: uint8, float32."""
    unit: str = ""
    """Of its numbers; empty if nobody can tell."""

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise ValueError(f"kind must be one of {', '.join(get_args(Kind))}, got {self.kind!r}")
        axes = _AXES[self.kind]
        fits = len(self.shape) == len(axes) and min(self.shape) > 0
        if not fits or (axes[-1] == "3" and self.shape[-1] != 3):
            raise ValueError(
                f"the shape of {self.kind} must be [{', '.join(axes)}], got {list(self.shape)}"
            )


@dataclass(frozen=True, slots=True, eq=False)
class Truth:
    """What a simulator knows of something that a leaf of a policy says."""

    value: NDArray[np.float32]
    """Of the leaf's shape."""
    units: tuple[str, ...]
    """Per entry of the last axis."""


@dataclass(frozen=True, slots=True, eq=False)
class Limits:
    """What the robot carries out: every action is clipped to it.

    Raises:
        ValueError: the parts have different lengths, or a range is empty.
    """

    low: NDArray[np.float32]
    """[A] in robot units; -inf where there is no limit. A copy, as `high` is."""
    high: NDArray[np.float32]
    """[A]"""
    units: tuple[str, ...]
    """[A] of each dimension; empty texts where nobody can tell."""
    names: tuple[str, ...]
    """[A] what each dimension is called, likewise."""

    def __post_init__(self) -> None:
        for name in ("low", "high"):
            copied = np.array(getattr(self, name), np.float32)
            copied.setflags(write=False)
            object.__setattr__(self, name, copied)
        lengths = {n: np.shape(getattr(self, n)) for n in ("low", "high", "units", "names")}
        if len(set(lengths.values())) != 1 or self.low.ndim != 1 or self.low.size == 0:
            words = ", ".join(f"{name} {list(shape)}" for name, shape in lengths.items())
            raise ValueError(f"limits must be [A] each, got {words}")
        for number in np.flatnonzero(~(self.low < self.high))[:1].tolist():
            raise ValueError(
                f"dimension {number} of an action must have low < high, "
                f"got {self.low[number]} and {self.high[number]}"
            )

    @property
    def num_actions(self) -> int:
        """A."""
        return self.low.size

    def clip(self, action_A: NDArray[np.float32]) -> NDArray[np.float32]:
        """The nearest action [A] inside; the caller owns it.

        Raises:
            ValueError: `action_A` is not finite float32 [A].
        """
        check_action(action_A, self.num_actions)
        return np.asarray(np.clip(action_A, self.low, self.high), np.float32)


class Robot(Protocol):
    """What a control loop drives.

    Order of calls: `reset`, then `observe` and `send` until `done`, then `reset` again or `close`.
    `observe`, `send` and `hold` before the first `reset` and after `close`, and `send` once `done`,
    raise `RobotError`. `runtime.robots.testing.check_robot` tells whether a robot keeps all this.
    """

    instruction: str
    """What the operator wants, as the policy gets to read it."""

    @property
    def inputs(self) -> Mapping[str, Sensor]:
        """What `observe` gives, by the name of the policy's input; the same for good."""

    @property
    def limits(self) -> Limits:
        """What `send` clips to; the same for good."""

    def reset(self) -> Observation:
        """Start an episode; the observation returned is its first, the anchor frame.

        Something may be visible in it and gone right after, in the first `observe`.
        """

    def observe(self) -> Observation:
        """The newest observation; the same one, bit for bit, until the next `send`, or a newer one.

        What differs from the last has a newer stamp, so a world that stands still between two
        actions shows one picture, and a robot that is held for long shows what it sees by then.
        Within an episode stamps never go backwards, and two pictures never have one frame id. An
        observation stays as it is: the robot does not write into its arrays again.
        """

    def send(self, action_A: NDArray[np.float32]) -> NDArray[np.float32]:
        """Carry out one action, [A] float32 in robot units, clipped to `limits`.

        Returns:
            What was sent, [A] float32; the caller owns it. `action_A` is not kept, nor changed.

        Raises:
            ValueError: `action_A` has the wrong shape or dtype, or holds a NaN or infinity; nothing
                moves then.
        """

    def hold(self) -> None:
        """Keep still where it is: zero velocity, or the present position as the command.

        May be called at any time after `reset`, after `done` and several times too. The episode
        goes on, and no step of it is used.
        """

    @property
    def done(self) -> bool:
        """Whether the episode is over."""

    @property
    def success(self) -> bool | None:
        """Whether the task was achieved in this episode; None where nobody can tell."""

    def close(self) -> None:
        """Free what the robot holds. Calling it twice is fine."""


class Knowing(Protocol):
    """A simulator that can be held against a policy's leaves; no robot has to be one."""

    def truths(self) -> Mapping[str, Truth]:
        """What holds now, in an episode, by the name of the leaf: for reports, and never for a
        policy."""


def truths_of(robot: Robot) -> Mapping[str, Truth]:
    """What a robot knows, if it is a simulator that tells."""
    tells = getattr(robot, "truths", None)
    return {} if tells is None else tells()


class Wanted(Protocol):
    """What a policy wants under one name; `Sensor` says what the words mean."""

    @property
    def kind(self) -> str: ...

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def dtype(self) -> Any: ...

    @property
    def unit(self) -> str: ...


def check_fits(robot: Robot, wanted: Mapping[str, Wanted], num_actions: int) -> None:
    """Refuse a robot that cannot feed a policy, or cannot carry out what it answers.

    Args:
        robot: what it shows besides is left alone.
        wanted: by name, what the policy wants of a robot. The size of pictures is the policy's own
            to judge.
        num_actions: A, of the policy.

    Raises:
        RobotError: says in one line what is missing or differs.
    """
    for name, want in wanted.items():
        if name not in robot.inputs:
            raise RobotError(
                f"the policy wants input {name!r}, {_described(want)}, and the robot shows "
                f"{_words(robot.inputs)}: give it that name in the robot's inputs"
            )
        if _differs(robot.inputs[name], want):
            raise RobotError(
                f"input {name!r} of the robot is {_described(robot.inputs[name])}, the policy "
                f"wants {_described(want)}: convert it in the robot's observe, or export the "
                "policy for this robot"
            )
    if robot.limits.num_actions != num_actions:
        names = " ".join(name for name in robot.limits.names if name)
        raise RobotError(
            f"the robot takes {robot.limits.num_actions} action dimensions"
            f"{f' ({names})' if names else ''}, the policy answers {num_actions}: choose the "
            "bundle or the embodiment of this robot, or convert actions in its send"
        )


def check_action(action_A: NDArray[np.float32], num_dimensions: int) -> None:
    """Refuse an action that no robot should get to see.

    Raises:
        ValueError: if `action_A` is not finite float32 of shape [num_dimensions].
    """
    if action_A.shape != (num_dimensions,) or action_A.dtype != np.float32:
        raise ValueError(
            f"an action must be float32 [{num_dimensions}], "
            f"got {action_A.dtype} {list(action_A.shape)}"
        )
    if not np.isfinite(action_A).all():
        raise ValueError(f"an action must be finite, got {action_A.tolist()}")


def _differs(shown: Sensor, want: Wanted) -> bool:
    is_vector = want.kind == "vector"
    return (
        shown.kind != want.kind
        or np.dtype(shown.dtype) != np.dtype(want.dtype)
        or len(shown.shape) != len(want.shape)
        or (is_vector and tuple(shown.shape) != tuple(want.shape))
        or bool(shown.unit and want.unit and shown.unit != want.unit)
    )


def _described(what: Wanted) -> str:
    unit = f" in {what.unit}" if what.unit else ""
    return f"{what.kind} {np.dtype(what.dtype)} {list(what.shape)}{unit}"


def _words(names: Mapping[str, Any]) -> str:
    return ", ".join(sorted(names)) or "nothing"
