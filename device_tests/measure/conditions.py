"""Under what conditions a number was measured: clocks, temperatures, power, what throttles."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from runtime.board.machine import (
    ROOT,
    Clock,
    meminfo,
    read_clocks,
    read_power_w,
    read_temperatures,
    read_throttling,
)

WHOLE_BOARD = ("VDD_IN", "VIN")
"""Rails that feed all others."""
INSIDE_ANOTHER = ("VDDQ_VDD2_1V8AO",)
"""Rails that another one feeds, on boards that measure no sum."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Conditions:
    """One look at the sensors. What a machine lacks is an empty mapping."""

    clocks_mhz: dict[str, float]
    """`cpu` (mean of the cores), `gpu`, `emc` (the memory)."""
    temperatures_c: dict[str, float]
    power_w: dict[str, float]
    """By rail."""
    cooling: dict[str, int]
    """Cooling devices that hold something back, fans left out."""
    over_current: dict[str, int]
    """Events since boot by counter."""
    resident_mb: float
    """Of this process; 1e6 bytes."""
    unix_s: float

    @property
    def total_w(self) -> float | None:
        """Of the whole board; None where nothing measures it."""
        if not self.power_w:
            return None
        whole = [watts for rail, watts in self.power_w.items() if rail in WHOLE_BOARD]
        if whole:
            return max(whole)
        return sum(w for rail, w in self.power_w.items() if rail not in INSIDE_ANOTHER)


Look = Callable[[], Conditions]


def read_conditions(root: Path = ROOT) -> Conditions:
    """Read every sensor of this machine, or of the captured tree `root`."""
    clocks, throttling = read_clocks(root), read_throttling(root)
    found: dict[str, Clock | None] = {"gpu": clocks.gpu, "emc": clocks.emc}
    now_mhz = {name: clock.now_mhz for name, clock in found.items() if clock is not None}
    if clocks.cpus:
        now_mhz["cpu"] = sum(clock.now_mhz for clock in clocks.cpus) / len(clocks.cpus)
    return Conditions(
        clocks_mhz=now_mhz,
        temperatures_c=read_temperatures(root),
        power_w=read_power_w(root),
        cooling=throttling.cooling,
        over_current=throttling.over_current,
        resident_mb=read_resident_mb(root),
        unix_s=time.time(),
    )


def read_resident_mb(root: Path = ROOT) -> float:
    """Memory of this process that is in RAM; 1e6 bytes. NaN where the kernel does not tell."""
    try:
        lines = (root / "proc/self/status").read_text().splitlines()
    except OSError:
        return float("nan")
    sizes = [line.split()[1] for line in lines if line.startswith("VmRSS:")]
    return int(sizes[0]) * 1024 / 1e6 if sizes else float("nan")


def read_available_mb(root: Path = ROOT) -> float:
    """Memory that a new process can have; 1e6 bytes. NaN where the kernel does not tell."""
    return meminfo(root).get("MemAvailable", float("nan")) / 1e6


def throttled(looks: Sequence[Conditions]) -> tuple[str, ...]:
    """What held the clocks down while a run was looked at, in words; empty if nothing did."""
    words = {f"{name} in state {state}": None for at in looks for name, state in at.cooling.items()}
    first, last = looks[0].over_current, looks[-1].over_current
    for name, count in last.items():
        if events := count - first.get(name, 0):
            words[f"{events} over-current events of {name}"] = None
    return tuple(words)
