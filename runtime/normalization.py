"""Robot units to the policy's [-1, 1] and back, per dimension and by an explicit mode.

The numbers come from `dataset_statistics.json` as OpenVLA and starVLA write it; the mode of each
dimension is stated by the checkpoint, never guessed, and a `mask` in the statistics (which
dimensions were normalized in training) must agree with it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

MODES = (
    "q99", "min_max", "mean_std", "identity", "binary",
    "q99_clipped", "min_max_or_zero", "threshold", "bounds", "bounds_q99",
)  # fmt: skip
"""The last two are OpenVLA's and those of its relatives, the three before them starVLA's, see
`Normalization.from_statistics`."""
BOUNDS = {
    "q99": ("q01", "q99"),
    "min_max": ("min", "max"),
    "mean_std": ("mean", "std"),
    "q99_clipped": ("q01", "q99"),
    "min_max_or_zero": ("min", "max"),
    "bounds": ("min", "max"),
    "bounds_q99": ("q01", "q99"),
}
LIMITS = {"q99_clipped": 2.2, "bounds": 1.0, "bounds_q99": 1.0}
"""Where a mode cuts off what the policy reads."""
LEAST_SPREAD = 1e-8
"""What `bounds` and `bounds_q99` add to the distance of their bounds."""
_STILL = {"q99_clipped": LIMITS["q99_clipped"], "min_max_or_zero": 0.0}
"""Modes that say what becomes of a dimension whose bounds are equal: its value is cut off here."""
MIN_SPREAD = 1e-6
"""Of the size of the values, or of one unit: a micrometre, a microradian. Less is a joint that
stood still with noise on it, which would come out of the mapping a million times larger."""

_LARGEST = float(np.finfo(np.float32).max)


class Scaling(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How each number of a vector is normalized, as a graph says it."""

    statistics: str
    """Which of the embodiment's."""
    modes: tuple[str, ...]
    units: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Normalization:
    """One vector's mapping: policy value x = (robot value - offset) / scale.

    Beyond that: where the bounds are equal the robot value itself is read, and `offset` is answered
    (`still`); what is read is cut off at `limit`; and a `threshold` reads 0 or 1.
    """

    modes: tuple[str, ...]
    units: tuple[str, ...]
    offset: NDArray[np.float32]
    scale: NDArray[np.float32]
    binary: NDArray[np.bool_]
    """What is answered is 0 or 1."""
    still: NDArray[np.bool_]
    limit: NDArray[np.float32]
    """Infinite where nothing is cut off."""
    threshold: NDArray[np.bool_]
    """What is read is 0 or 1."""

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

        As starVLA's `Normalizer` has them (dataloader/gr00t_lerobot/transform/state_action.py):
        `q99_clipped` is q99 whose readings are clipped to +-2.2; where both quantiles are the same
        float32, the value itself is read (and clipped), and the quantile is answered.
        `min_max_or_zero` is min_max that reads 0 and answers the minimum where both bounds are the
        same. `threshold` is x > 0.5 in both directions.

        As OpenVLA-OFT has them (experiments/robot/openvla_utils.py, `normalize_proprio`):
        `bounds` and `bounds_q99` are min_max and q99 whose readings are clipped to +-1, and whose
        bounds are 1e-8 farther apart, so that a dimension that never moved is read as -1 up to its
        value and as 1 above it, and its value is answered.

        Raises:
            ValueError: a bound is missing, has another length, is not finite, is not below its
                partner or hardly so (which modes take that clip); an angle spans more than a full
                turn, which means degrees; or the mask contradicts a mode.
        """
        offset = np.zeros(len(modes), np.float32)
        scale = np.ones(len(modes), np.float32)
        still = np.zeros(len(modes), np.bool_)
        limit = np.array([LIMITS.get(mode, np.inf) for mode in modes], np.float32)
        _check_mask(statistics, modes, what)
        for i, mode in enumerate(modes):
            if mode not in MODES:
                raise ValueError(f"{what}[{i}]: unknown mode {mode!r}, know {list(MODES)}")
            if mode in BOUNDS:
                low, high = (_entry(statistics, key, i, len(modes), what) for key in BOUNDS[mode])
                if mode in _STILL and np.float32(low) == np.float32(high):
                    offset[i], still[i], limit[i] = low, True, _STILL[mode]
                    continue
                spread = _SPREADS.get(mode, _bounded)
                offset[i], scale[i] = spread(low, high, BOUNDS[mode], units[i], f"{what}[{i}]")
        threshold = np.array([mode == "threshold" for mode in modes], np.bool_)
        binary = np.array([mode == "binary" for mode in modes], np.bool_) | threshold
        return cls(tuple(modes), tuple(units), offset, scale, binary, still, limit, threshold)

    def to_policy(self, robot: NDArray[np.float32]) -> NDArray[np.float32]:
        """Robot units -> what the policy reads, clipped where its mode says so."""
        policy = (robot - self.offset) / self.scale
        if np.isinf(self.limit).all() and not self.threshold.any():
            return policy
        policy = np.where(self.still, robot, policy).clip(-self.limit, self.limit)
        return np.where(self.threshold, (robot > 0.5).astype(policy.dtype), policy)

    def to_robot(self, policy: NDArray[np.float32]) -> NDArray[np.float32]:
        """What the policy says -> robot units; binary dimensions become 0 or 1."""
        robot = np.where(self.still, self.offset, policy * self.scale + self.offset)
        return np.where(self.binary, (policy > 0.5).astype(np.float32), robot)


def scaling(params: Scaling, statistics: Mapping[str, Mapping[str, Any]]) -> Normalization:
    """The mapping of one vector for an embodiment.

    Raises:
        ValueError: the statistics are missing or do not fit; see `Normalization.from_statistics`.
    """
    if params.statistics not in statistics:
        raise ValueError(f"no statistics {params.statistics!r}, only {sorted(statistics)}")
    return Normalization.from_statistics(
        statistics[params.statistics], params.modes, params.units, what=params.statistics
    )


def medoid(
    samples_KTA: NDArray[np.float32], mapping: Normalization
) -> tuple[NDArray[np.float32], float]:
    """The sample that is nearest to the others, and how far it is from them.

    The medoid of Kaufman and Rousseeuw (1987): unlike a mean it is something that the policy said,
    so between two ways around an obstacle it takes one of them. Binary dimensions have no distance:
    at each step they are what more than half of the samples say.

    Args:
        samples_KTA: float32 [K, T, A] in robot units, K of 2 or more.
        mapping: of the actions; distances are in policy units, where all dimensions count alike.

    Returns:
        [T, A] in robot units, and the root mean square distance to the other samples, of a number.
    """
    is_far = ~mapping.binary
    policy_KTA = mapping.to_policy(samples_KTA.astype(np.float64))[..., is_far]
    between_KKTA = policy_KTA[:, None] - policy_KTA[None]
    count = len(samples_KTA)
    squares_KK = (
        np.mean(np.square(between_KKTA), axis=(2, 3)) if is_far.any() else np.zeros((count,) * 2)
    )
    chosen = int(np.argmin(np.sqrt(squares_KK).sum(axis=1)))
    actions_TA = samples_KTA[chosen].copy()
    actions_TA[:, mapping.binary] = samples_KTA[..., mapping.binary].mean(axis=0) > 0.5
    return actions_TA, float(np.sqrt(squares_KK[chosen].sum() / (count - 1)))


def choose_embodiment(statistics: Mapping[str, Any], embodiment: str | None) -> str:
    """The statistics key to use.

    Raises:
        ValueError: no such key, or several and none chosen. The message lists the keys.
    """
    keys = sorted(statistics)
    if embodiment is None:
        if len(keys) == 1:
            return keys[0]
        raise ValueError(f"the statistics hold {len(keys)} embodiments, choose one of {keys}")
    if embodiment not in statistics:
        raise ValueError(f"no statistics for embodiment {embodiment!r}; there are {keys}")
    return embodiment


def _bounded(
    low: float, high: float, names: tuple[str, str], unit: str, where: str
) -> tuple[float, float]:
    """Offset and scale that map `low` to -1 and `high` to 1."""
    if low < high:
        _check_spread(high - low, abs(high), f"{names[1]} - {names[0]}", where)
    return _bounded_at_all(low, high, names, unit, where)


def _bounded_at_all(
    low: float, high: float, names: tuple[str, str], unit: str, where: str
) -> tuple[float, float]:
    """The same, be `low` and `high` ever so near."""
    if low >= high:
        raise ValueError(
            f"{where}: {' >= '.join(names)} ({low} >= {high}); this dimension never moved in the "
            "data: give it mode 'identity' or other statistics"
        )
    if unit.startswith("rad") and high - low > 2 * math.pi:
        raise ValueError(
            f"{where} is in {unit} but spans {high - low:.4g}, more than a full turn: are the "
            "statistics in degrees?"
        )
    return (low + high) / 2, (high - low) / 2


def _standard(
    mean: float, std: float, names: tuple[str, str], unit: str, where: str
) -> tuple[float, float]:
    """Offset and scale that map to mean 0 and deviation 1."""
    if std <= 0:
        raise ValueError(f"{where}: std must be above zero, got {std}")
    _check_spread(std, abs(mean), names[1], where)
    # pi is that of an angle which jumps between the ends of a full turn.
    if unit.startswith("rad") and std > math.pi:
        raise ValueError(
            f"{where} is in {unit} but has a std of {std:.4g}, more than a full turn allows: are "
            "the statistics in degrees?"
        )
    return mean, std


def _widened(
    low: float, high: float, names: tuple[str, str], unit: str, where: str
) -> tuple[float, float]:
    """Offset and scale that map `low` to -1 and `high`, a little farther away, to 1."""
    if low < high:
        _bounded_at_all(low, high, names, unit, where)
    elif low > high:
        raise ValueError(f"{where}: {' > '.join(names)} ({low} > {high}): they are exchanged")
    scale = (high - low + LEAST_SPREAD) / 2
    # float32 must not round the offset to `low`, which would be read as 0 and not as -1.
    offset = max(np.float32(low + scale), np.nextafter(np.float32(low), np.float32(np.inf)))
    return float(offset), scale


_SPREADS = {
    "mean_std": _standard,
    "q99_clipped": _bounded_at_all,
    "bounds": _widened,
    "bounds_q99": _widened,
}


def _check_spread(spread: float, size: float, name: str, where: str) -> None:
    least = MIN_SPREAD * max(size, 1.0)
    if spread < least:
        raise ValueError(
            f"{where}: {name} is {spread:.3g}, at least {least:.3g} is expected for values up to "
            f"{size:.3g}; this dimension stood still in the data: give it mode 'identity' or other "
            "statistics"
        )


def _check_mask(statistics: Mapping[str, Any], modes: Sequence[str], what: str) -> None:
    """Refuse modes that contradict what the statistics say was normalized in training."""
    mask = statistics.get("mask")
    if mask is None:
        return
    if not isinstance(mask, list | tuple) or not all(isinstance(is_on, bool) for is_on in mask):
        raise ValueError(f"{what}: mask must be a list of true and false, got {mask!r}")
    if len(mask) != len(modes):
        raise ValueError(f"{what}: 'mask' has {len(mask)} values for {len(modes)} dimensions")
    for i, (is_on, mode) in enumerate(zip(mask, modes, strict=True)):
        if is_on != (mode in BOUNDS):
            raise ValueError(
                f"{what}[{i}]: mask says that it was {'' if is_on else 'not '}normalized in "
                f"training, its mode {mode!r} that it {'was' if mode in BOUNDS else 'was not'}; "
                "mend the one that is wrong, normalization in config.json or the mask"
            )


def _entry(
    statistics: Mapping[str, Sequence[float]], key: str, index: int, width: int, what: str
) -> float:
    if key not in statistics:
        raise ValueError(f"{what}: the statistics hold no {key!r}, only {sorted(statistics)}")
    values = statistics[key]
    if not isinstance(values, list | tuple):
        raise ValueError(f"{what}: {key!r} must be a list of numbers, got {values!r}")
    if len(values) != width:
        raise ValueError(f"{what}: {key!r} has {len(values)} numbers for {width} dimensions")
    value = values[index]
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{what}[{index}]: {key} must be a number, got {value!r}")
    if not abs(value) <= _LARGEST:
        raise ValueError(f"{what}[{index}]: {key} is {value}")
    return float(value)
