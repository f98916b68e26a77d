"""`dataset_statistics.json`: what each robot's states and actions were, in the layouts in use.

Goes in: a file as OpenVLA writes it (`action` and `proprio` per robot) or starVLA (`action` and
`state`). Comes out: `action` and `state` per robot. The trade-off: other files of statistics are
recognised and refused with the way to mend them, because which robot they are of is not in them.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from models.json_file import read_object

KINDS = ("action", "state")
OPENVLA_STATE = "proprio"
_NUMBERS = {"mean", "std", "min", "max", "q01", "q99"}


def read_statistics(path: Path, optional: Collection[str] = ()) -> dict[str, Any]:
    """Entries with `action` and `state`, by robot.

    Args:
        optional: which of them may be missing, and is empty then.

    Raises:
        ValueError: another layout, or a robot without one of them; says which keys it has.
    """
    statistics = read_object(path)
    if not statistics:
        raise ValueError(f"{path}: holds no robot")
    vectors = [key for key, value in statistics.items() if _is_vector(value)]
    if any(key.startswith("observation.") for key in vectors):
        raise ValueError(
            f"{path}: these are LeRobot's meta/stats.json; make of its 'action' and "
            '\'observation.state\' {"NAME": {"action": ..., "state": ...}} with the robot\'s name'
        )
    if vectors:
        raise ValueError(
            f"{path}: holds {vectors} without a robot around them; make it "
            '{"NAME": {"action": ..., "state": ...}} with the robot\'s name'
        )
    return {name: _entry(f"{path}: {name}", entry, optional) for name, entry in statistics.items()}


def _entry(where: str, entry: Any, optional: Collection[str]) -> dict[str, Any]:
    if not isinstance(entry, dict):
        raise ValueError(f"{where} must be an object with 'action' and 'state', got {entry!r}")
    if "state" in entry and OPENVLA_STATE in entry:
        raise ValueError(f"{where} has both 'state' and {OPENVLA_STATE!r}; remove one")
    named: dict[str, Any] = {kind: {} for kind in optional}
    named |= {"state" if key == OPENVLA_STATE else key: value for key, value in entry.items()}
    for kind in KINDS:
        if kind not in named:
            raise ValueError(
                f"{where} lacks {kind!r}{' (or proprio)' if kind == 'state' else ''}, it has "
                f"{sorted(entry)}"
            )
        if not isinstance(named[kind], dict):
            raise ValueError(f"{where}.{kind} must be an object, got {named[kind]!r}")
    return named


def _is_vector(value: Any) -> bool:
    """Whether these are the statistics of one vector, not of a robot."""
    return isinstance(value, Mapping) and bool(_NUMBERS & value.keys())
