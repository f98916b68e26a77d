"""What this machine is and how it does right now: board, clocks, temperatures, power, throttling.

Everything is read from files and a few commands, nothing is assumed of a board: where a machine
has no such file, the field is None or the mapping lacks the name. Every reader takes the folder
that stands for `/`, and the way to run a command, so that a captured tree reads like a board.
"""

from __future__ import annotations

import json
import platform
import re
import resource
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from .supported import SMS, jetpack_of, numbers_of

Run = Callable[[Sequence[str]], str]
"""Runs a command and returns what it prints; empty where there is no such command."""

ROOT = Path("/")
COMMAND_TIMEOUT_S = 10.0
OFF_C = -100.0
"""A sensor whose block has no power reads -256 degrees."""
CUDA_LIBRARIES = (
    "usr/local/cuda/lib64/libcudart.so.*",
    "usr/local/cuda/targets/*/lib/libcudart.so.*",
    "usr/local/cuda-*/lib64/libcudart.so.*",
    "usr/local/cuda-*/targets/*/lib/libcudart.so.*",
    "usr/lib/*-linux-gnu*/libcudart.so.*",
)
TENSORRT_LIBRARIES = ("libnvinfer11", "libnvinfer10")


@dataclass(frozen=True, kw_only=True, slots=True)
class PowerMode:
    """One of nvpmodel's."""

    name: str
    """As NVIDIA writes it: MAXN_SUPER, MODE_30W, 25W."""
    number: int
    """For `nvpmodel -m`. Another one on each module and release."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Machine:
    """What does not change while a policy runs, but for `available_bytes`."""

    board: str
    """Model in the device tree, or the architecture (x86_64)."""
    compatible: tuple[str, ...]
    """Of the device tree, most specific first; empty without one."""
    l4t: str | None
    """Jetson Linux: 36.4.3."""
    has_release_file: bool
    """/etc/nv_tegra_release is there; in a container it is often empty."""
    jetpack: str | None
    """Derived from `l4t`."""
    sm: str | None
    """Compute capability of a Jetson's GPU: 8.7 on Orin."""
    cuda: str | None
    """Of the toolkit in /usr/local/cuda, or of a libcudart where there is no toolkit."""
    tensorrt: str | None
    """Library that the system's packages brought."""
    power_mode: PowerMode | None
    power_modes: tuple[PowerMode, ...]
    """All that this module has."""
    num_cpus: int
    """Online."""
    memory_bytes: int
    """Of the CPU and, on a Jetson, of the GPU too."""
    available_bytes: int
    """Of it, what a new process can have."""
    swap_bytes: int
    python: str

    @property
    def is_jetson(self) -> bool:
        known = self.l4t is not None or self.sm is not None
        return known or any("nvidia,tegra" in name for name in self.compatible)


@dataclass(frozen=True, kw_only=True, slots=True)
class Clock:
    """A clock in MHz. Locked means that it can take one value only."""

    now_mhz: float
    min_mhz: float | None
    max_mhz: float | None

    @property
    def is_locked(self) -> bool:
        return self.min_mhz is not None and self.min_mhz == self.max_mhz


@dataclass(frozen=True, kw_only=True, slots=True)
class Clocks:
    """Limits are those of the power mode. The memory's clock often needs root to be read."""

    cpus: tuple[Clock, ...]
    gpu: Clock | None
    emc: Clock | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Throttling:
    """What holds the clocks down."""

    cooling: dict[str, int]
    """Cooling devices in a state above 0, fans left out."""
    over_current: dict[str, int]
    """Events since boot by counter: oc1 is undervoltage, oc2 average, oc3 instantaneous current."""


def run_command(arguments: Sequence[str]) -> str:
    """Run a command without a shell; what it printed, empty if it is missing or hangs."""
    try:
        done = subprocess.run(
            list(arguments),
            capture_output=True,
            text=True,
            errors="replace",
            timeout=COMMAND_TIMEOUT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout


def read_machine(root: Path = ROOT, run: Run = run_command, python: str | None = None) -> Machine:
    """Read what this machine is.

    Args:
        root: folder that stands for `/`.
        run: for nvpmodel, uname and dpkg-query.
        python: version of the interpreter; the running one by default.
    """
    compatible = tuple(name for name in _device_tree(root, "compatible") if name)
    release = root / "etc/nv_tegra_release"
    l4t = _l4t(text_of(release))
    memory = meminfo(root)
    return Machine(
        board=next(iter(_device_tree(root, "model")), "") or _architecture(run),
        compatible=compatible,
        l4t=l4t,
        has_release_file=release.exists(),
        jetpack=None if l4t is None else jetpack_of(l4t),
        sm=_sm(root, compatible),
        cuda=_cuda(root),
        tensorrt=_tensorrt(run),
        power_mode=_power_mode(root, run),
        power_modes=_power_modes(root, run),
        num_cpus=_num_cpus(root, run),
        memory_bytes=memory.get("MemTotal", 0),
        available_bytes=memory.get("MemAvailable", 0),
        swap_bytes=memory.get("SwapTotal", 0),
        python=python or platform.python_version(),
    )


def read_clocks(root: Path = ROOT) -> Clocks:
    """Current clocks and their limits."""
    cpus = (
        _clock(folder, "scaling_cur_freq", "scaling_min_freq", "scaling_max_freq", 1e3)
        for folder in paths_of(root, "sys/devices/system/cpu/cpu[0-9]*/cpufreq")
    )
    devices = paths_of(root, "sys/class/devfreq/*")
    # 17000000.gpu on Orin (.ga10b before JetPack 6), gpu-gpc-0 before gpu-nvd-0 on Thor.
    gpus = [d for d in devices if "gpu" in d.name or "ga10b" in d.name]
    emcs = [d for d in devices if "bwmgr" in d.name or "emc" in d.name]
    debug = root / "sys/kernel/debug/bpmp/debug/clk/emc"
    return Clocks(
        cpus=tuple(clock for clock in cpus if clock is not None),
        gpu=_first_devfreq(gpus),
        emc=_clock(debug, "rate", "min_rate", "max_rate", 1e6) or _first_devfreq(emcs),
    )


def read_temperatures(root: Path = ROOT) -> dict[str, float]:
    """Degrees Celsius by zone. Zones that cannot be read, or whose block is off, are left out."""
    found = {}
    for zone in paths_of(root, "sys/class/thermal/thermal_zone*"):
        millidegrees = number_of(zone / "temp")
        if millidegrees is not None and millidegrees / 1e3 > OFF_C:
            found[text_of(zone / "type").strip() or zone.name] = millidegrees / 1e3
    return found


def read_power_w(root: Path = ROOT) -> dict[str, float]:
    """Watts by rail, from the monitors on the board.

    Rails are named by the board: VDD_IN on Orin Nano and NX is all of it; AGX Orin has no such sum.
    """
    found = {}
    for label in paths_of(root, "sys/bus/i2c/drivers/ina3221/*/hwmon/hwmon*/in[123]_label"):
        number = label.name[2]
        millivolts = number_of(label.with_name(f"in{number}_input"))
        milliamperes = number_of(label.with_name(f"curr{number}_input"))
        if millivolts is not None and milliamperes is not None:
            found[text_of(label).strip()] = millivolts * milliamperes / 1e6
    for power in paths_of(root, "sys/bus/i2c/drivers/ina238/*/hwmon/hwmon*/power1_input"):
        microwatts = number_of(power)  # Thor measures its supply with another chip
        if microwatts is not None:
            found["VIN"] = microwatts / 1e6
    return {name: watts for name, watts in found.items() if name not in ("", "NC")}


def read_throttling(root: Path = ROOT) -> Throttling:
    """What holds the clocks down now, and what did since boot."""
    cooling = {}
    for device in paths_of(root, "sys/class/thermal/cooling_device*"):
        name, state = text_of(device / "type").strip(), number_of(device / "cur_state")
        if state is not None and state > 0 and "fan" not in name.lower():
            cooling[name or device.name] = int(state)
    counters = paths_of(root, "sys/class/hwmon/hwmon*/oc*_event_cnt")
    counts = {path.name.split("_")[0]: number_of(path) for path in counters}
    return Throttling(
        cooling=cooling,
        over_current={name: int(count) for name, count in counts.items() if count is not None},
    )


def _device_tree(root: Path, name: str) -> list[str]:
    """A property is strings that each end with a NUL."""
    return text_of(root / "proc/device-tree" / name).rstrip("\0\n").split("\0")


def _architecture(run: Run) -> str:
    return run(["uname", "-m"]).strip() or "unknown"


def _l4t(text: str) -> str | None:
    """`# R36 (release), REVISION: 4.3, GCID: ...` -> 36.4.3."""
    found = re.search(r"# R(\d+) \(release\), REVISION: ([\d.]+)", text)
    return None if found is None else f"{found[1]}.{found[2]}"


def _sm(root: Path, compatible: Sequence[str]) -> str | None:
    """By the device tree; a container may hide that, but not what the kernel says of the chip."""
    in_tree = (SMS[chip] for chip in SMS if f"nvidia,{chip}" in compatible)
    soc = root / "sys/devices/soc0"
    is_tegra = text_of(soc / "family").strip() == "Tegra"
    told = SMS.get(f"tegra{text_of(soc / 'soc_id').strip()}") if is_tegra else None
    return next(in_tree, told)


def _cuda(root: Path) -> str | None:
    try:
        return str(json.loads(text_of(root / "usr/local/cuda/version.json"))["cuda"]["version"])
    except (ValueError, KeyError, TypeError):
        pass
    for pattern in CUDA_LIBRARIES:  # libcudart.so.12 is a link to libcudart.so.12.6.68
        versions = [path.name.removeprefix("libcudart.so.") for path in paths_of(root, pattern)]
        if versions:
            return max(versions, key=numbers_of)
    return None


def _tensorrt(run: Run) -> str | None:
    for package in TENSORRT_LIBRARIES:
        version = run(["dpkg-query", "--show", "--showformat=${Version}", package]).strip()
        if version:
            return version.split("-")[0]
    return None


def _power_mode(root: Path, run: Run) -> PowerMode | None:
    found = re.search(r"NV Power Mode:\s*(\S+)\s+(\d+)", run(["nvpmodel", "-q"]))
    if found is not None:
        return PowerMode(name=found[1], number=int(found[2]))
    status = re.search(r"pmode:(\d+)", text_of(root / "var/lib/nvpmodel/status"))
    if status is None:
        return None
    return next((m for m in _power_modes(root, run) if m.number == int(status[1])), None)


def _power_modes(root: Path, run: Run) -> tuple[PowerMode, ...]:
    pattern = re.compile(r"^[^#\n]*POWER_MODEL:?\s+ID=(\d+)\s+NAME=([^\s>]+)", re.MULTILINE)
    found = pattern.findall(text_of(root / "etc/nvpmodel.conf"))
    found = found or pattern.findall(run(["nvpmodel", "-p", "--verbose"]))
    return tuple(PowerMode(name=name, number=int(number)) for number, name in found)


def _num_cpus(root: Path, run: Run) -> int:
    """`0-3,6` is five of them. In a container or a changed root there may be no /sys."""
    ranges = re.findall(r"(\d+)(?:-(\d+))?", text_of(root / "sys/devices/system/cpu/online"))
    listed = sum(int(last or first) - int(first) + 1 for first, last in ranges)
    counted = re.findall(r"^processor\s*:", text_of(root / "proc/cpuinfo"), re.MULTILINE)
    told = run(["nproc"]).strip()
    return listed or len(counted) or (int(told) if told.isdigit() else 0)


def meminfo(root: Path = Path("/")) -> dict[str, int]:
    """What the kernel tells of memory, in bytes, by its own names."""
    lines = re.findall(r"^(\w+):\s+(\d+) kB", text_of(root / "proc/meminfo"), re.MULTILINE)
    return {name: int(kibibytes) * 1024 for name, kibibytes in lines}


def peak_bytes(root: Path = Path("/")) -> int:
    """Most that this process ever held, mapped files too.

    Asked of the kernel's page: `getrusage` counts for a new process what its parent held.
    """
    status = text_of(root / "proc/self/status")
    found = re.search(r"^VmHWM:\s+(\d+) kB", status, re.MULTILINE)
    if found is not None:
        return int(found[1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _first_devfreq(folders: list[Path]) -> Clock | None:
    clocks = (_clock(folder, "cur_freq", "min_freq", "max_freq", 1e6) for folder in folders)
    return next((clock for clock in clocks if clock is not None), None)


def _clock(folder: Path, now: str, low: str, high: str, per_mhz: float) -> Clock | None:
    values = [number_of(folder / name) for name in (now, low, high)]
    mhz = [None if value is None else value / per_mhz for value in values]
    if mhz[0] is None:
        return None
    return Clock(now_mhz=mhz[0], min_mhz=mhz[1], max_mhz=mhz[2])


def paths_of(root: Path, pattern: str) -> list[Path]:
    return sorted(root.glob(pattern))


def number_of(path: Path) -> float | None:
    try:
        return float(text_of(path))
    except ValueError:
        return None


def text_of(path: Path) -> str:
    """Empty where it cannot be read: sysfs refuses sensors of blocks that are off."""
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""
