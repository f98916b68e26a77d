"""What a device test measures and for how long, as data and as command line options."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runtime.backends.registry import BACKENDS


@dataclass(frozen=True, kw_only=True, slots=True)
class MeasureConfig:
    """What is measured, and for how long."""

    bundle: Path
    """Folder written by `python -m export build`."""

    board: str | None = None
    """Row of the budgets; chosen by the machine if left out."""

    backend: str | None = None
    """What runs the engines, of `runtime.backends.registry`; TensorRT on a Jetson if left out, else
    ONNX Runtime."""

    embodiment: str | None = None
    """Key of the statistics, where a bundle has several."""

    seconds: float = 10.0
    """Of each of five parts: latency, three paced loops, memory. Slow policies take longer."""

    num_idle: int = 5
    """Ticks after a pause."""

    idle_s: float = 2.0
    """Length of such a pause."""

    memory_share: float = 0.25
    """Of the memory that is free, taken by another process in one of the paced loops."""

    soak_s: float = 0.0
    """Length of the thermal soak; none at 0."""

    baseline: Path | None = None
    """Last accepted result, a `device.json`."""

    commit: str | None = None
    """Of the checkout that the tests come from, where it is not the folder they lie in."""

    def __post_init__(self) -> None:
        if self.backend is not None and self.backend not in BACKENDS:
            raise ValueError(f"backend must be one of {', '.join(BACKENDS)}, got {self.backend!r}")
        if not 0 < self.seconds <= 3600:
            raise ValueError(f"seconds must be in (0, 3600], got {self.seconds}")
        if not 0 < self.memory_share < 0.9:
            raise ValueError(f"memory_share must be in (0, 0.9), got {self.memory_share}")
        for name in ("soak_s", "idle_s", "num_idle"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")


OPTIONS: dict[str, type] = {
    "bundle": Path,
    "board": str,
    "backend": str,
    "embodiment": str,
    "seconds": float,
    "num_idle": int,
    "idle_s": float,
    "memory_share": float,
    "soak_s": float,
    "baseline": Path,
    "commit": str,
}
"""Fields of `MeasureConfig` by the type of their option."""


def flag(name: str) -> str:
    """The option of a field."""
    return f"--{name.replace('_', '-')}"


def read_config(options: Mapping[str, Any]) -> MeasureConfig:
    """Of options by field; what was left out, or is None, has the default of `MeasureConfig`.

    Raises:
        ValueError: there is no bundle, or a value is out of its range.
    """
    given = {name: options[name] for name in OPTIONS if options.get(name) is not None}
    if "bundle" not in given:
        raise ValueError("no bundle was named: run python -m device_tests BUNDLE")
    return MeasureConfig(**given)
