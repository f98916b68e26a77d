"""What an output means, so that what was not made for it can tell whether it came true.

A bundle may say it of a leaf. A control loop then holds the leaf against what it has besides: what
the gripper was told, what encoders feel, what a camera shows later. A leaf of which nothing is said
is read, and nothing more.

J = joint, H, W = image height and width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import numpy as np
from msgspec import Meta, Struct
from numpy.typing import NDArray

FLOATS = ("float32", "float16")
WHITE = 255
"""The largest number of a picture, of whichever dtype."""
ROUNDING = 1.0
"""Numbers of a picture may be outside by that much."""


class Grasp(
    Struct,
    frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True,
    tag_field="is", tag="grasp",
):  # fmt: skip
    """How likely the gripper holds something: one number in [0, 1], and no logit."""

    gripper: str = ""
    """Which axis of the robot description, where several are grippers."""


class JointPositions(
    Struct,
    frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True,
    tag_field="is", tag="joint_positions",
):  # fmt: skip
    """Where joints are in the observation that is read: [J] rad."""

    names: tuple[str, ...]
    """[J] as the robot description calls them; empty texts for numbers that nobody shall compare,
    such as those of joints that slide."""


class FutureImage(
    Struct,
    frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True,
    tag_field="is", tag="future_image",
):  # fmt: skip
    """What a camera will show: [H, W, 3] RGB from 0 to 255, uint8, or a float as it comes."""

    camera: str
    """The input."""
    steps: Annotated[int, Meta(ge=1)]
    """Control steps from the observation that is read."""
    is_middle: bool = False
    """Whether it shows the largest piece from the middle of the camera's picture that has its
    proportions; else all of it, whatever its proportions are."""


Meaning = Grasp | JointPositions | FutureImage


def check_meaning(
    meaning: Meaning,
    *,
    shape: tuple[int, ...],
    dtype: str,
    units: Sequence[str],
    cameras: Mapping[str, tuple[int, ...]],
) -> None:
    """Refuse a meaning that its tensor cannot have.

    Args:
        shape: of the tensor.
        dtype: likewise.
        units: of its last axis, if they are said.
        cameras: shape of what each camera of the robot gives, by input.

    Raises:
        ValueError: says what is wrong.
    """
    match meaning:
        case Grasp():
            if shape != (1,) or dtype not in FLOATS:
                raise ValueError(f"a grasp is float32 [1], not {dtype} {list(shape)}")
        case JointPositions(names=names):
            named = [name for name in names if name]
            if shape != (len(names),) or dtype not in FLOATS:
                raise ValueError(
                    f"joint positions with {len(names)} names are float32 [{len(names)}], not "
                    f"{dtype} {list(shape)}"
                )
            if not named or len(set(named)) < len(named):
                raise ValueError(f"joint positions need a name each, and once, got {list(names)}")
            for name, unit in zip(names, units, strict=False):
                if name and unit != "rad":
                    raise ValueError(f"joint {name!r} is in {unit!r}, joint positions are in rad")
        case FutureImage(camera=camera):
            if len(shape) != 3 or shape[-1] != 3 or dtype not in (*FLOATS, "uint8"):
                raise ValueError(
                    f"a future image is uint8 or float32 [H, W, 3], not {dtype} {list(shape)}"
                )
            if camera not in cameras:
                raise ValueError(
                    f"a future image of {camera!r}, which is no camera of the robot; there are "
                    f"{', '.join(cameras) or 'none'}"
                )


def check_value(meaning: Meaning, value: NDArray[Any]) -> None:
    """Refuse what nobody can judge.

    Raises:
        ValueError: its shape, a NaN or infinity, or numbers that it cannot have.
    """
    words = f"{value.dtype} {list(value.shape)}"
    if value.dtype != np.uint8 and not np.issubdtype(value.dtype, np.floating):
        raise ValueError(f"expected numbers that a {_name(meaning)} has, got {words}")
    if not np.isfinite(value).all():
        raise ValueError(f"a {_name(meaning)} that is not finite: {words}")
    match meaning:
        case Grasp():
            if value.size != 1 or not 0 <= value.item() <= 1:
                got = f"{value.item():g}" if value.size == 1 else words
                raise ValueError(f"a grasp is one number in [0, 1], got {got}")
        case JointPositions(names=names):
            if value.shape != (len(names),):
                raise ValueError(f"expected {len(names)} joint positions, got {words}")
        case FutureImage():
            if value.ndim != 3 or value.shape[-1] != 3 or not value.size:
                raise ValueError(f"a future image is [H, W, 3], got {words}")
            low, high = float(value.min()), float(value.max())
            if low < -ROUNDING or high > WHITE + ROUNDING:
                raise ValueError(f"a future image is from 0 to 255, got {low:g} to {high:g}")


def _name(meaning: Meaning) -> str:
    return str(type(meaning).__struct_config__.tag).replace("_", " ")
