"""What a Jetson is doing right now, in the words of its own tool."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from .machine import OFF_C, Run, run_command

ONE_LINE = ("timeout", "2", "tegrastats", "--interval", "500")
"""The tool does not end by itself."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Load:
    """Of a block; either may be missing in a line."""

    percent: float | None
    mhz: float | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Rail:
    """Power in milliwatts; a rail of a block that is off can read a little below 0."""

    now_mw: int
    average_mw: int
    """Since tegrastats was started."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Tegrastats:
    """One line of tegrastats."""

    ram_used_mb: int
    ram_total_mb: int
    swap_used_mb: int | None
    swap_total_mb: int | None
    cpus: tuple[Load | None, ...]
    """`None` is a core that is off."""
    gpu: Load | None
    """The clock is that of the fastest of its parts. Thor has no load, Orin Nano no clock here."""
    emc: Load | None
    """The memory; missing unless tegrastats runs as root."""
    temperatures_c: dict[str, float]
    """By sensor, in small letters as of JetPack 6. Sensors that are off are left out."""
    power: dict[str, Rail]


def read_tegrastats(run: Run = run_command) -> Tegrastats | None:
    """What the tool prints first; None where there is no such tool."""
    lines = run(ONE_LINE).splitlines()
    return parse_tegrastats(lines[0]) if lines else None


def parse_tegrastats(line: str) -> Tegrastats:
    """Read a line that tegrastats of JetPack 5, 6 or 7 prints. What is unknown is passed over.

    Raises:
        ValueError: no line of tegrastats.
    """
    ram = re.search(r"\bRAM (\d+)/(\d+)MB", line)
    if ram is None:
        raise ValueError(
            f"not a line of tegrastats: got {line[:60]!r}, expected 'RAM 2467/7471MB ...'; run "
            "tegrastats without options but --interval"
        )
    swap = re.search(r"\bSWAP (\d+)/(\d+)MB", line)
    degrees = re.findall(r"(\w+)@(-?\d+(?:\.\d+)?)C\b", line)
    rails = re.findall(r"\b([A-Z]\w*) (-?\d+)mW/(-?\d+)mW", line)
    return Tegrastats(
        ram_used_mb=int(ram[1]),
        ram_total_mb=int(ram[2]),
        swap_used_mb=None if swap is None else int(swap[1]),
        swap_total_mb=None if swap is None else int(swap[2]),
        cpus=tuple(_cpu_loads(line)),
        gpu=_load(line, "GR3D_FREQ"),
        emc=_load(line, "EMC_FREQ"),
        temperatures_c={n.lower(): float(value) for n, value in degrees if float(value) > OFF_C},
        power={n: Rail(now_mw=int(now), average_mw=int(mean)) for n, now, mean in rails},
    )


def _cpu_loads(line: str) -> Iterator[Load | None]:
    """`CPU [2%@729,off]`, or `CPU [2%,off]@729` with one clock for all."""
    found = re.search(r"\bCPU \[([^\]]*)\](?:@(\d+))?", line)
    if found is None:
        return
    for core in found[1].split(","):
        load = re.fullmatch(r"\s*(\d+)%(?:@(\d+))?\s*", core)
        if load is None:
            yield None
            continue
        mhz = load[2] or found[2]
        yield Load(percent=float(load[1]), mhz=None if mhz is None else float(mhz))


def _load(line: str, name: str) -> Load | None:
    """`34%@4266`, `34%`, `@4266`, or a clock per part: `34%@[1300,611]`, `@[1574,1574,1574]`."""
    found = re.search(rf"\b{name} (?:(\d+)%)?(?:@\[?([\d,]+)\]?)?", line)
    if found is None or (found[1] is None and found[2] is None):
        return None
    clocks = [float(mhz) for mhz in (found[2] or "").split(",") if mhz]
    percent = None if found[1] is None else float(found[1])
    return Load(percent=percent, mhz=max(clocks, default=None))
