"""The last ticks before a stop, kept while a robot runs and written out when it stops.

A record is a JSON file: why it stopped, the interventions so far, and for each tick the time, the
action that was asked for, what was sent, and what the guard objected to; and what leaves of the
policy were read meanwhile, large ones by their size alone, and what they contradicted. What JSON
has no number for stands as text: "nan", "inf", "-inf".
"""

from __future__ import annotations

import json
import math
import time
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..storage.files import Kind, write_file
from .leaves import SMALL, Reading
from .trace import Notice

MARK = "anchorvla flight record"
FLIGHT = Kind("a flight record of this project", (MARK.encode(),))
NUM_TICKS = 50


class FlightRecord:
    """Ticks of one episode; the oldest go first."""

    def __init__(self, robot: str) -> None:
        self.robot = robot
        self._ticks: deque[tuple[float, Any, Any, tuple[str, ...], Mapping[str, float]]]
        self._ticks = deque(maxlen=NUM_TICKS)
        self._leaves: deque[dict[str, Any]] = deque(maxlen=NUM_TICKS)
        self._notices: deque[Notice] = deque(maxlen=NUM_TICKS)

    def note(
        self, at: float, asked: Any, sent: Any, kinds: tuple[str, ...], stamps: Mapping[str, float]
    ) -> None:
        """One tick. Arrays are kept, not copied."""
        self._ticks.append((at, asked, sent, kinds, stamps))

    def heard(self, reading: Reading) -> None:
        """A leaf that was read. The array of a small one is kept, not copied."""
        value, words = reading.value, f"{list(reading.value.shape)} {reading.value.dtype}"
        self._leaves.append(
            {
                "name": reading.name,
                "looked_at_s": reading.looked_at,
                "read_at_s": reading.read_at,
                "value": value if value.size <= SMALL else words,
            }
        )

    def noticed(self, notice: Notice) -> None:
        """What a leaf contradicts."""
        self._notices.append(notice)

    def __len__(self) -> int:
        return len(self._ticks)

    def contents(self, reason: str, interventions: Mapping[str, int]) -> dict[str, Any]:
        """As it is written."""
        keys = ("at_s", "asked", "sent", "interventions", "stamps_s")
        ticks = [dict(zip(keys, map(_plain, tick), strict=True)) for tick in self._ticks]
        return {
            MARK: 1,
            "robot": self.robot,
            "reason": reason,
            "interventions": dict(interventions),
            "ticks": ticks,
            "leaves": [_plain(leaf) for leaf in self._leaves],
            "notices": [
                {
                    "kind": notice.kind,
                    "leaf": notice.leaf,
                    "looked_at_s": _plain(notice.looked_at),
                    "words": notice.words,
                }
                for notice in self._notices
            ],
        }

    def write(self, folder: Path, reason: str, interventions: Mapping[str, int]) -> Path:
        """Into a new file of `folder`, whole or not at all.

        Raises:
            OutputError: it cannot be written.
        """
        name, number = time.strftime("stop-%Y%m%d-%H%M%S"), 0
        while (path := folder / f"{name}-{number}.json").exists():
            number += 1
        text = json.dumps(self.contents(reason, interventions), indent=1, allow_nan=False)
        write_file(path, text + "\n", FLIGHT)
        return path


def _plain(value: Any) -> Any:
    """What JSON can hold."""
    if isinstance(value, np.ndarray) and value.dtype.kind in "fiub":
        return _plain(value.tolist())
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value if value is None or isinstance(value, str | int | bool) else repr(value)[:200]
