"""Joints of a URDF file: kind, limits, and which one another follows.

Goes in: a file. Comes out: its joints by name. Of XML this takes what URDF needs: Python's own
expat reads it, and a document type, which is where entities come from, is refused. The libraries
that read URDF bring meshes, collision checks and an HTTP client for the five attributes used here.

Source: the URDF joint element (wiki.ros.org/urdf/XML/joint). Angles are radians, lengths metres.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from xml.parsers import expat

MOST_BYTES = 16_000_000
KINDS = ("revolute", "continuous", "prismatic", "fixed", "floating", "planar")
_TURNS, _MOVES = ("revolute", "continuous", "prismatic"), ("revolute", "prismatic")


@dataclass(frozen=True, slots=True)
class Joint:
    """One joint."""

    name: str
    kind: str
    """One of `KINDS`."""
    low: float | None
    """Its range, soft limits included; None where it has none, as a continuous one."""
    high: float | None
    velocity: float | None
    """At most, per second; None where the file does not say."""
    follows: str | None
    """The joint that moves it, where it is a mimic."""

    @property
    def unit(self) -> str:
        return "m" if self.kind == "prismatic" else "rad"


def read_urdf(path: Path) -> Mapping[str, Joint]:
    """Every joint of a robot, by name.

    Raises:
        ValueError: it cannot be read, is no URDF, or a joint in it is not what a joint has to be.
    """
    reader = _Reader(path)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror}); name a URDF file") from None
    if len(data) > MOST_BYTES:
        raise ValueError(f"{path}: {len(data)} bytes, more than any robot; name a URDF file")
    parser = expat.ParserCreate()
    parser.StartDoctypeDeclHandler = reader.doctype
    parser.StartElementHandler = reader.start
    parser.EndElementHandler = reader.end
    try:
        parser.Parse(data, True)
    except expat.ExpatError as error:
        raise ValueError(f"{path}: not XML: {error}; name a URDF file") from None
    return reader.joints


class _Reader:
    """Collects joints while a file goes by."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.joints: dict[str, Joint] = {}
        self._open: list[str] = []
        self._parts: dict[str, dict[str, str]] = {}

    def doctype(self, *_: object) -> None:
        raise ValueError(
            f"{self.path}: holds a document type, which a URDF does not need and which is refused: "
            "entities come from there; remove the <!DOCTYPE ...>"
        )

    def start(self, tag: str, attributes: dict[str, str]) -> None:
        if not self._open and tag != "robot":
            raise ValueError(f"{self.path}: begins with <{tag}>, expected <robot>: not a URDF")
        if tag.startswith("xacro:"):
            raise ValueError(
                f"{self.path}: holds <{tag}>; expand it first: xacro FILE > robot.urdf"
            )
        self._open.append(tag)
        if self._open == ["robot", "joint"]:
            self._parts = {"joint": attributes}
        elif self._open[:2] == ["robot", "joint"] and len(self._open) == 3:
            self._parts[tag] = attributes

    def end(self, tag: str) -> None:
        if self._open == ["robot", "joint"]:
            self._add()
        self._open.pop()

    def _add(self) -> None:
        name, kind = (self._parts["joint"].get(key, "") for key in ("name", "type"))
        if not name or name in self.joints:
            words = f"two joints named {name!r}" if name else "a joint without a name"
            raise ValueError(f"{self.path}: {words}; give each joint a name of its own")
        if kind not in KINDS:
            raise ValueError(
                f"{self.path}: joint {name!r} is of type {kind!r}, expected one of "
                f"{', '.join(KINDS)}"
            )
        low = high = None
        if kind in _MOVES:
            low, high = self._range(name)
        mimic = self._parts.get("mimic", {})
        velocity = self._number(name, "limit", "velocity") if kind in _TURNS else None
        if velocity is not None and velocity <= 0:
            raise ValueError(
                f"{self.path}: joint {name!r} has velocity {velocity:g}, expected more than 0"
            )
        self.joints[name] = Joint(name, kind, low, high, velocity, mimic.get("joint"))

    def _range(self, name: str) -> tuple[float, float]:
        """The tighter of hard and soft limits; what a <limit> leaves out is 0, as URDF says."""
        if "limit" not in self._parts:
            raise ValueError(f"{self.path}: joint {name!r} has no <limit>; give it one")
        low = self._number(name, "limit", "lower") or 0.0
        high = self._number(name, "limit", "upper") or 0.0
        soft_low = self._number(name, "safety_controller", "soft_lower_limit")
        soft_high = self._number(name, "safety_controller", "soft_upper_limit")
        low = low if soft_low is None else max(low, soft_low)
        high = high if soft_high is None else min(high, soft_high)
        if not low < high:
            raise ValueError(
                f"{self.path}: joint {name!r} must have lower < upper, got {low:g} and {high:g}"
            )
        return low, high

    def _number(self, name: str, tag: str, key: str) -> float | None:
        text = self._parts.get(tag, {}).get(key)
        if text is None:
            return None
        try:
            number = float(text)
        except ValueError:
            number = math.nan
        if not math.isfinite(number):
            raise ValueError(
                f"{self.path}: {key} of joint {name!r} is {text!r}, expected a finite number"
            )
        return number
