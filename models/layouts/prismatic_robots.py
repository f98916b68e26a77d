"""What VLA-Adapter's code says of each robot: chunk, modes, units, cameras, which no file states.

In: names of the statistics beside the weights. Out: the authors' constants for the platform that
they tell, as their code tells it. The trade-off: where their code takes LIBERO's constants for
whatever it does not know, the folder is refused here, and a file of one's own says it (`OWN`).

Source: VLA-Adapter at snapshot 838a36d, prismatic/vla/constants.py for chunks and modes,
prismatic/vla/datasets/datasets.py for cameras, .../rlds/oxe/transforms.py for what a state is made
of. Units are those of the simulators and data sets.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, repeat
from pathlib import Path

from models.fields import parse
from models.json_file import read_object
from models.policy_config import NormalizationConfig, Unit

OWN = "anchorvla.json"
"""May lie beside the weights, and goes before the table."""
Units = tuple[tuple[int, Unit], ...]
"""How many dimensions, and their unit."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Robot:
    """A platform."""

    data: str
    """One of its data sets, whose name tells it."""
    horizon: int
    """Actions in a chunk."""
    mode: str
    """Of every state, and of every action that is normalized."""
    action: Units
    state: Units
    views: tuple[str, ...] = ()
    """In the order of the prompt; none where nothing that is published tells how many."""


_CONTROLLER: Units = ((7, "fraction"),)
_TWO_ARMS: Units = ((6, "rad"), (1, "fraction"), (6, "rad"), (1, "fraction"))
ROBOTS: Mapping[str, Robot] = {
    "libero": Robot(
        data="libero_spatial_no_noops",
        horizon=8,
        mode="bounds_q99",
        action=_CONTROLLER,
        state=((3, "m"), (3, "rad"), (2, "m")),
        views=("frame", "wrist"),
    ),
    "aloha": Robot(
        data="aloha1_fold_shirt_30_demos",
        horizon=25,
        mode="bounds",
        action=_TWO_ARMS,
        state=_TWO_ARMS,
        views=("frame", "left_wrist", "right_wrist"),
    ),
    "bridge": Robot(
        data="bridge_orig",
        horizon=5,
        mode="bounds_q99",
        action=((3, "m/step"), (3, "rad/step"), (1, "fraction")),
        state=((3, "m"), (3, "rad"), (1, "fraction")),
    ),
    "calvin": Robot(
        data="calvin_abc_rlds",
        horizon=8,
        mode="bounds_q99",
        action=_CONTROLLER,
        state=((3, "m"), (3, "rad"), (1, "m"), (1, "fraction")),
        views=("frame", "wrist"),
    ),
}
"""By what the authors look for in a name, in their order."""
HOW = (
    f'say it in {OWN} beside config.json: {{"normalization": {{"action": [a mode per dimension], '
    '"action_units": [...], "state": [...], "state_units": [...]}, "views": [camera names in the '
    'order of the prompt], "action_horizon": 8}. The authors\' BOUNDS_Q99 is "bounds_q99" here, '
    'BOUNDS "bounds", and a dimension whose mask is false "identity"'
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Own:
    """What a file of one's own may say, each for itself."""

    normalization: NormalizationConfig | None = None
    views: tuple[str, ...] | None = None
    action_horizon: int | None = None
    """Actions in a chunk, which no tensor shows."""
    tower_heads: tuple[int, ...] | None = None
    """Attention heads of both vision towers, where they are none of the published ones."""


def read_own(folder: Path) -> Own:
    """
    Raises:
        ValueError: a file that says something else.
    """
    path = folder / OWN
    if not path.is_file():
        return Own()
    try:
        own = parse(Own, read_object(path), "")
        if own.action_horizon is not None and own.action_horizon < 1:
            raise ValueError(f"action_horizon must be at least 1, got {own.action_horizon}")
        if own.views == ():
            raise ValueError("views must name a camera at least")
        if own.tower_heads is not None and (len(own.tower_heads) != 2 or min(own.tower_heads) < 1):
            raise ValueError(f"tower_heads must hold two numbers from 1, got {own.tower_heads}")
    except ValueError as error:
        named = str(error).startswith(str(path))
        raise ValueError(str(error) if named else f"{path}: {error}") from None
    return own


def robot_of(names: Iterable[str]) -> str:
    """The platform of all these statistics.

    Raises:
        ValueError: one is of none that is known, or they are of several.
    """
    told = {name: next((r for r in ROBOTS if r in name.lower()), None) for name in names}
    if unknown := sorted(name for name, robot in told.items() if robot is None):
        raise ValueError(
            f"statistics {', '.join(unknown)} name no robot whose constants are known, "
            f"{', '.join(ROBOTS)}; {HOW}"
        )
    found = sorted({str(robot) for robot in told.values()})
    if len(found) > 1:
        raise ValueError(
            f"statistics of {' and '.join(found)}, whose constants differ; leave those that the "
            "policy was trained with"
        )
    return found[0]


def normalization(robot: Robot, mask: Sequence[bool]) -> NormalizationConfig:
    """
    Args:
        mask: of each action, whether it is normalized.
    """
    state = units(robot.state)
    return NormalizationConfig(
        action=tuple(robot.mode if is_on else "identity" for is_on in mask),
        state=(robot.mode,) * len(state),
        action_units=units(robot.action),
        state_units=state,
    )


def units(rows: Units) -> tuple[Unit, ...]:
    return tuple(chain.from_iterable(repeat(unit, count) for count, unit in rows))
