"""What a robot may do, from a JSON file: per action dimension its limits, per camera its rate.

Goes in: a file (docs/guard.md has one for each way of control), and the robot's URDF if the file
names one. Comes out: a `Description`, complete and checked. What a file leaves open is an error,
not a default: a limit that nobody wrote is one that nobody keeps.

Everything is in SI units of the axis: m or rad, per second, per second squared and cubed. An axis
whose action comes in something else says how much one of it is (`scale`): 0.0174533 for degrees.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Literal

import msgspec

from .urdf import Joint, read_urdf

MOST_RAD = 2 * math.pi * 1.001
"""A bound beyond one turn is degrees, or a joint that nobody sells."""
MOST_RAD_PER_S = 30.0
MOST_M = 10.0
"""A bound beyond is millimetres."""
MOST_AXES = 64
_RATES = ("velocity", "acceleration", "jerk")


class Measured(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where the position of an axis is felt."""

    index: int
    """In the vector that `Description.state` names."""
    scale: float = 1.0
    """Of its numbers, to the unit of the axis."""
    offset: float = 0.0


class Axis(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One dimension of an action."""

    name: str
    control: Literal["position", "velocity", "delta", "gripper"]
    """What its number is: where to be, how fast to go, how far to go from the last command, or how
    far a gripper opens."""
    unit: Literal["m", "rad", "fraction"]
    scale: float = 1.0
    """What 1 of the action is in `unit` (per second, for a velocity)."""
    offset: float = 0.0
    """Position where the action is 0, of a position or gripper."""
    low: float | None = None
    high: float | None = None
    velocity: float | None = None
    acceleration: float | None = None
    jerk: float | None = None
    max_error: float | None = None
    """How far the measured position may be from the commanded one."""
    measured: Measured | None = None
    joint: str | None = None
    """Its name in the URDF, which gives what is left out here."""
    closed: Literal["low", "high"] = "low"
    """Of a gripper: the end of its range at which it is closed."""


class Norm(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A limit on several axes together: the length of the vector of their velocities."""

    name: str
    axes: tuple[str, ...]
    velocity: float
    acceleration: float


class Camera(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A camera that is watched."""

    rate_hz: float
    may_repeat: bool = False
    """Whether one picture may equal the last, to the bit; no sensor's do, some encoders' do."""


class Arming(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Tighter limits for the first actions of an episode, and after a watchdog."""

    actions: int = 10
    fraction: float = 0.5
    """Of velocity, acceleration and jerk."""


class Description(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A robot's limits.

    Raises:
        ValueError: names the field, what it holds and what was expected.
    """

    robot: str
    axes: tuple[Axis, ...]
    """[A], in the order of an action."""
    stamps: Literal["monotonic", "simulated"]
    """Clock of the observations' stamps: CLOCK_MONOTONIC of this machine, or one that stands still
    between two actions, where nothing can be too old."""
    norms: tuple[Norm, ...] = ()
    cameras: Mapping[str, Camera] = {}
    """By the name of the input; a camera that is not here is not watched."""
    state: str | None = None
    """Name of the input whose numbers `Axis.measured` counts."""
    joints: Mapping[str, Measured] = {}
    """Joints that turn and are no axis of an action, by name: where their positions are felt, to
    rad."""
    arming: Arming = Arming()
    max_spread: float | None = None
    """How far a chunk may be from the other samples of its tick, in policy units, where a range is
    2 long; one that is further, or of a policy that samples once, is not carried out."""
    period_s: float | None = None
    """How long an action lasts on the robot, if that is not the loop's period: a simulator."""
    urdf: str | None = None
    """Path of the URDF, from the folder of this file."""

    def __post_init__(self) -> None:
        for problem in _problems(self):
            raise ValueError(problem)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(axis.name for axis in self.axes)

    @property
    def encoders(self) -> dict[str, Measured]:
        """Where each joint is felt, to rad, by its name: those of `joints`, and axes that turn by
        their name and by that in the URDF."""
        found = {
            name: axis.measured
            for axis in self.axes
            for name in (axis.name, axis.joint)
            if name and axis.unit == "rad" and axis.measured is not None
        }
        return found | dict(self.joints)


def read_description(path: Path) -> Description:
    """A robot description file, completed from its URDF.

    Raises:
        ValueError: it cannot be read, or what it says cannot be; names file and field.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ValueError(
            f"{path}: cannot be read ({error.strerror}); name a robot description (docs/guard.md)"
        ) from None
    try:
        raw = msgspec.json.decode(data, type=dict[str, msgspec.Raw])
        urdf = msgspec.json.decode(raw["urdf"], type=str | None) if "urdf" in raw else None
        if urdf is None:
            return msgspec.json.decode(data, type=Description)
        axes = msgspec.json.decode(raw.get("axes", b"[]"), type=tuple[Axis, ...])
        joints = read_urdf(path.parent / urdf)
        completed = [msgspec.to_builtins(_completed(axis, joints)) for axis in axes]
        return msgspec.convert(msgspec.json.decode(data) | {"axes": completed}, Description)
    except msgspec.MsgspecError as error:
        raise ValueError(f"{path}: {error}") from None
    except ValueError as error:
        words = str(error)
        raise ValueError(words if words.startswith(str(path)) else f"{path}: {words}") from None


def _completed(axis: Axis, joints: Mapping[str, Joint]) -> Axis:
    """With the limits of its joint where the file has none; the file may only be tighter."""
    if axis.joint is None:
        return axis
    if axis.joint not in joints:
        raise ValueError(
            f"axis {axis.name!r}: the URDF has no joint {axis.joint!r}; it has "
            f"{', '.join(joints) or 'none'}"
        )
    joint = joints[axis.joint]
    if joint.follows is not None:
        raise ValueError(
            f"axis {axis.name!r}: joint {joint.name!r} follows {joint.follows!r} (mimic); "
            "command that one"
        )
    if joint.kind not in ("revolute", "continuous", "prismatic"):
        raise ValueError(
            f"axis {axis.name!r}: joint {joint.name!r} is {joint.kind}: no single number moves it"
        )
    if axis.unit != joint.unit:
        raise ValueError(
            f"axis {axis.name!r} is in {axis.unit}, joint {joint.name!r} ({joint.kind}) in "
            f"{joint.unit}; write the unit of the joint, and what 1 of the action is as scale"
        )
    found = {"low": joint.low, "high": joint.high, "velocity": joint.velocity}
    for key, limit in found.items():
        own = getattr(axis, key)
        if limit is None or own is None:
            continue
        if own < limit if key == "low" else own > limit:
            raise ValueError(
                f"axis {axis.name!r}: {key} {own:g} is wider than the URDF's {limit:g}; a "
                "description may only be tighter"
            )
    missing = {key: limit for key, limit in found.items() if getattr(axis, key) is None}
    return msgspec.structs.replace(axis, **missing)


def _problems(whole: Description) -> Iterator[str]:
    """What is wrong, the gravest first."""
    if not 1 <= len(whole.axes) <= MOST_AXES:
        yield f"axes: {len(whole.axes)} of them, expected 1 to {MOST_AXES}, one per dimension"
    for what, names in {
        "axes": [axis.name for axis in whole.axes],
        "norms": [norm.name for norm in whole.norms],
        "axes of all norms": [name for norm in whole.norms for name in norm.axes],
    }.items():
        for name in names:
            if not name or names.count(name) > 1:
                yield f"{what}: the name {name!r} must be there once, got {names.count(name)} times"
    for norm in whole.norms:
        yield from _wrong_norm(norm, whole)
    normed = {name for norm in whole.norms for name in norm.axes}
    for axis in whole.axes:
        for problem in (*_wrong_numbers(axis), *_wrong_bounds(axis), *_left_open(axis, normed)):
            yield f"axis {axis.name!r}: {problem}"
        yield from _unmeasured(axis, whole)
    yield from _wrong_joints(whole)
    for name, camera in whole.cameras.items():
        if not 0 < camera.rate_hz <= 1000:
            yield f"camera {name!r}: rate_hz must be in (0, 1000], got {camera.rate_hz:g}"
    if whole.cameras and whole.stamps == "simulated":
        yield "cameras: they are watched by the clock, which simulated stamps lack; leave them out"
    if whole.max_spread is not None and not 0 < whole.max_spread <= 2:
        yield f"max_spread must be in (0, 2], got {whole.max_spread:g}"
    if whole.arming.actions < 0 or not 0 < whole.arming.fraction <= 1:
        yield (
            f"arming: actions must not be negative and fraction in (0, 1], got "
            f"{whole.arming.actions} and {whole.arming.fraction:g}"
        )
    if whole.period_s is not None and not 1e-3 <= whole.period_s <= 10:
        yield f"period_s must be in [0.001, 10], got {whole.period_s:g}"


def _wrong_joints(whole: Description) -> Iterator[str]:
    taken = {name for axis in whole.axes for name in (axis.name, axis.joint)}
    for name, measured in whole.joints.items():
        if not name or name in taken:
            yield f"joints: {name!r} needs a name that no axis has; an axis says it in measured"
        if whole.state is None or measured.index < 0:
            yield f"joint {name!r}: counts the numbers of an input; name it as state"
        if not 0 < abs(measured.scale) < math.inf:
            yield f"joint {name!r}: has scale {measured.scale:g}, expected not 0"
    for axis in whole.axes:
        if axis.closed != "low" and axis.control != "gripper":
            yield f"axis {axis.name!r}: closed is of grippers, this is a {axis.control}"


def _wrong_norm(norm: Norm, whole: Description) -> Iterator[str]:
    known = {axis.name: axis for axis in whole.axes}
    if unknown := [name for name in norm.axes if name not in known]:
        yield f"norm {norm.name!r}: there is no axis {unknown[0]!r}; there are {', '.join(known)}"
        return
    if not norm.axes or len({known[name].unit for name in norm.axes}) != 1:
        yield f"norm {norm.name!r}: its axes must be of one unit"
    if any(known[name].control == "gripper" for name in norm.axes):
        yield f"norm {norm.name!r}: a gripper is no part of a motion"
    for key in ("velocity", "acceleration"):
        if not 0 < getattr(norm, key) < math.inf:
            yield f"norm {norm.name!r}: {key} must be positive, got {getattr(norm, key):g}"


def _wrong_numbers(axis: Axis) -> Iterator[str]:
    for key in (*_RATES, "max_error", "scale"):
        number = getattr(axis, key)
        if number is not None and not 0 < number < math.inf:
            yield f"{key} must be a positive number, got {number:g}"
    for key in ("low", "high", "offset"):
        number = getattr(axis, key)
        if number is not None and not math.isfinite(number):
            yield f"{key} must be finite, got {number:g}"
    if axis.offset and axis.control in ("velocity", "delta"):
        yield f"offset is of positions, and this is a {axis.control}; leave it out"


def _wrong_bounds(axis: Axis) -> Iterator[str]:
    if (axis.low is None) != (axis.high is None):
        yield "low and high belong together; give both or neither"
    if axis.low is not None and axis.high is not None and not axis.low < axis.high:
        yield f"must have low < high, got {axis.low:g} and {axis.high:g}"
    most = {"rad": MOST_RAD, "m": MOST_M}.get(axis.unit, math.inf)
    widest = max(abs(axis.low or 0.0), abs(axis.high or 0.0))
    if widest > most:
        meant = "degrees" if axis.unit == "rad" else "millimetres"
        yield (
            f"a bound of {widest:g} {axis.unit} looks like {meant}; write {axis.unit}, and what 1 "
            "of the action is as scale"
        )
    if axis.unit == "rad" and (axis.velocity or 0.0) > MOST_RAD_PER_S:
        yield f"a velocity of {axis.velocity:g} rad/s looks like degrees; write rad/s"


def _left_open(axis: Axis, normed: set[str]) -> Iterator[str]:
    """Limits that this way of control needs."""
    needed = [key for key in ("velocity", "acceleration") if axis.name not in normed]
    needed += ["jerk"] if axis.control == "position" else []
    if axis.control == "gripper":
        needed = ["low"]
    elif axis.unit != "rad":
        needed += ["low"]  # a workspace
    elif axis.control == "position" and axis.joint is None:
        needed += ["low"]
    if missing := [key for key in needed if getattr(axis, key) is None]:
        words = ", ".join("low and high" if key == "low" else key for key in missing)
        norm = ", its own or a norm's" if {"velocity", "acceleration"} & {*missing} else ""
        yield f"a {axis.control} in {axis.unit} needs {words}{norm}"


def _unmeasured(axis: Axis, whole: Description) -> Iterator[str]:
    """A position that is limited has to be known before the first command."""
    seam = axis.control == "position" or (axis.control != "gripper" and axis.low is not None)
    seam = seam or (axis.control == "gripper" and axis.velocity is not None)
    if seam and axis.measured is None:
        yield (
            f"axis {axis.name!r}: its first command is judged by where it stands, so it needs "
            "measured, an index in the state"
        )
    if axis.max_error is not None and axis.measured is None:
        yield f"axis {axis.name!r}: max_error compares with measured; give both"
    drifts = axis.control in ("delta", "velocity") and axis.low is not None
    if drifts and axis.max_error is None and whole.stamps == "monotonic":
        yield (
            f"axis {axis.name!r}: a sum of steps drifts from where the arm is, so low and high "
            "need max_error"
        )
    if axis.measured is not None and (whole.state is None or axis.measured.index < 0):
        yield f"axis {axis.name!r}: measured counts the numbers of an input; name it as state"
    if axis.measured is not None and not 0 < abs(axis.measured.scale) < math.inf:
        yield f"axis {axis.name!r}: measured has scale {axis.measured.scale:g}, expected not 0"
