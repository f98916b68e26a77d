"""Robot units to the policy's [-1, 1] and back, per dimension and by an explicit mode.

The numbers come from `dataset_statistics.json` as OpenVLA and starVLA write it; the mode of each
dimension is stated by the checkpoint, never guessed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

MODES = ("q99", "min_max", "mean_std", "identity", "binary")
BOUNDS = {"q99": ("q01", "q99"), "min_max": ("min", "max"), "mean_std": ("mean", "std")}


@dataclass(frozen=True, slots=True)
class Normalization:
    """One vector's mapping: policy value x = (robot value - offset) / scale."""

    modes: tuple[str, ...]
    units: tuple[str, ...]
    offset: NDArray[np.float32]
    scale: NDArray[np.float32]
    binary: NDArray[np.bool_]

    @classmethod
    def from_statistics(
        cls,
        statistics: Mapping[str, Sequence[float]],
        modes: Sequence[str],
        units: Sequence[str],
        *,
        what: str,
    ) -> Normalization:
        """Build the mapping of one vector.

        `q99` and `min_max` map their bounds to -1 and 1, `mean_std` standardises, `identity` does
        nothing, `binary` passes the state and thresholds the action at 0.5.

        Raises:
            ValueError: a bound is missing, has another length, is not finite, or is not below its
                partner; or an angle spans more than a full turn, which means degrees.
        """
        offset = np.zeros(len(modes), np.float32)
        scale = np.ones(len(modes), np.float32)
        for i, mode in enumerate(modes):
            if mode not in MODES:
                raise ValueError(f"{what}[{i}]: unknown mode {mode!r}, know {list(MODES)}")
            if mode not in BOUNDS:
                continue
            low, high = (_entry(statistics, key, i, len(modes), what) for key in BOUNDS[mode])
            if mode == "mean_std":
                if high <= 0:
                    raise ValueError(f"{what}[{i}]: std must be above zero, got {high}")
                offset[i], scale[i] = low, high
                continue
            if low >= high:
                names = " >= ".join(BOUNDS[mode])
                raise ValueError(
                    f"{what}[{i}]: {names} ({low} >= {high}); this dimension never moved in the "
                    "data: give it mode 'identity' or other statistics"
                )
            if units[i].startswith("rad") and high - low > 2 * math.pi:
                raise ValueError(
                    f"{what}[{i}] is in {units[i]} but spans {high - low:.4g}, more than a full "
                    "turn: are the statistics in degrees?"
                )
            offset[i], scale[i] = (low + high) / 2, (high - low) / 2
        binary = np.array([mode == "binary" for mode in modes])
        return cls(tuple(modes), tuple(units), offset, scale, binary)

    def to_policy(self, robot: NDArray[np.float32]) -> NDArray[np.float32]:
        """Robot units -> what the policy reads, clipped nowhere."""
        return (robot - self.offset) / self.scale

    def to_robot(self, policy: NDArray[np.float32]) -> NDArray[np.float32]:
        """What the policy says -> robot units; binary dimensions become 0 or 1."""
        robot = policy * self.scale + self.offset
        return np.where(self.binary, (policy > 0.5).astype(np.float32), robot)


def choose_robot(statistics: Mapping[str, Any], robot: str | None) -> str:
    """The statistics key to use.

    Raises:
        ValueError: no such key, or several and none chosen. The message lists the keys.
    """
    keys = sorted(statistics)
    if robot is None:
        if len(keys) == 1:
            return keys[0]
        raise ValueError(f"the statistics hold {len(keys)} robots, choose one of {keys}")
    if robot not in statistics:
        raise ValueError(f"no statistics for robot {robot!r}; there are {keys}")
    return robot


def _entry(
    statistics: Mapping[str, Sequence[float]], key: str, index: int, width: int, what: str
) -> float:
    if key not in statistics:
        raise ValueError(f"{what}: the statistics hold no {key!r}, only {sorted(statistics)}")
    values = statistics[key]
    if len(values) != width:
        raise ValueError(f"{what}: {key!r} has {len(values)} numbers for {width} dimensions")
    value = float(values[index])
    if not math.isfinite(value):
        raise ValueError(f"{what}[{index}]: {key} is {value}")
    return value
