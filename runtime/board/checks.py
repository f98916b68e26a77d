"""What `anchorvla doctor` looks at on a board: power, clocks, heat, load, swap, camera."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from .cameras import UsbCamera, has_hidraw, read_cameras
from .machine import Clock, Machine, PowerMode, Run, read_clocks, read_throttling
from .supported import Finding, judge
from .tegrastats import read_tegrastats

GB = 10**9
ENOUGH_MEMORY_BYTES = 32 * GB
"""A board with so much builds its plans without swap."""
USB3_MBPS = 5000.0
IDLE_PERCENT = 20.0
REBUILD = "build the plans again, if it has another number of SMs: anchorvla build BUNDLE"


def check_power_mode(machine: Machine) -> Finding:
    mode, best = machine.power_mode, _fastest(machine.power_modes)
    is_best = mode is not None and (mode.name.startswith("MAXN") if best is None else mode == best)
    if best is None:
        remedy = "list the modes: sudo nvpmodel -p --verbose; sudo nvpmodel -m NUMBER"
    else:
        remedy = f"sudo nvpmodel -m {best.number}"
    return judge(
        "power mode",
        is_best,
        "unknown" if mode is None else _mode(mode),
        expected="MAXN" if best is None else _mode(best),
        remedy=f"{remedy}; then {REBUILD}",
        otherwise="warning",
    )


def _mode(mode: PowerMode) -> str:
    return f"{mode.name} (mode {mode.number})"


def _fastest(modes: Sequence[PowerMode]) -> PowerMode | None:
    """MAXN_SUPER before MAXN before the most watts."""

    def rank(mode: PowerMode) -> tuple[bool, bool, int]:
        watts = re.search(r"(\d+)W", mode.name)
        is_maxn = mode.name.startswith("MAXN")
        return is_maxn, is_maxn and "SUPER" in mode.name, int(watts[1]) if watts else 0

    return max(modes, key=rank, default=None)


def check_clocks(root: Path) -> Finding:
    clocks = read_clocks(root)
    cpu = next((c for c in clocks.cpus if not c.is_locked), next(iter(clocks.cpus), None))
    named = {"CPU": cpu, "GPU": clocks.gpu}
    known = {name: clock for name, clock in named.items() if clock is not None}
    free = [_clock(name, clock) for name, clock in known.items() if not clock.is_locked]
    words = ", ".join(free or [_clock(name, clock) for name, clock in known.items()])
    found = f"{'free' if free else 'locked'}: {words}" if known else "not readable"
    return judge(
        "clocks",
        bool(known) and not free,
        found,
        expected="locked at the highest of the power mode",
        remedy="sudo jetson_clocks (holds until the next start): free clocks make the first ticks "
        "after a pause slow",
        otherwise="warning",
    )


def _clock(name: str, clock: Clock) -> str:
    high = "" if clock.max_mhz is None else f" of {clock.max_mhz:.0f}"
    return f"{name} {clock.now_mhz:.0f}{high} MHz"


def check_throttling(root: Path) -> Finding:
    state = read_throttling(root)
    events = {name: count for name, count in state.over_current.items() if count}
    parts = [f"{name} at {level}" for name, level in state.cooling.items()]
    parts += [f"{count} {name} events since boot" for name, count in events.items()]
    remedies = ["cool it (sudo jetson_clocks --fan, heat sink)"] if state.cooling else []
    remedies += ["give it a stronger supply or a lower power mode"] if events else []
    return judge(
        "throttling",
        not parts,
        ", ".join(parts) or "none",
        expected="none",
        remedy=f"{'; '.join(remedies)}; start it again before you measure",
        otherwise="warning",
    )


def check_gpu_load(run: Run) -> Finding:
    """Something else on the GPU takes time and memory from the policy."""
    stats = read_tegrastats(run)
    load = None if stats is None or stats.gpu is None else stats.gpu.percent
    return judge(
        "GPU load",
        load is None or load <= IDLE_PERCENT,
        "unknown" if load is None else f"{load:.0f} %",
        expected=f"at most {IDLE_PERCENT:.0f} % before a policy runs",
        remedy="stop what else uses the GPU; a desktop goes with: "
        "sudo systemctl isolate multi-user.target",
        otherwise="warning",
    )


def check_swap(machine: Machine) -> Finding:
    return judge(
        "swap",
        machine.swap_bytes > 0 or machine.memory_bytes >= ENOUGH_MEMORY_BYTES,
        gigabytes(machine.swap_bytes),
        expected=f"some, with less than {gigabytes(ENOUGH_MEMORY_BYTES)} of memory",
        remedy="building plans may run out of memory: sudo fallocate -l 8G /swapfile && sudo chmod "
        "600 /swapfile && sudo mkswap /swapfile && sudo swapon /swapfile",
        otherwise="warning",
    )


def check_realtime(priority: int) -> Finding:
    return judge(
        "real time",
        priority != 0,
        "any priority" if priority < 0 else f"priorities up to {priority} (RLIMIT_RTPRIO)",
        expected="a priority above 0",
        remedy='echo "$USER - rtprio 80" | sudo tee /etc/security/limits.d/90-anchorvla.conf, and '
        "log in again; for a service: LimitRTPRIO=80",
        otherwise="warning",
    )


def check_cameras(machine: Machine, root: Path) -> Iterator[Finding]:
    cameras = read_cameras(root)
    yield from (_camera(camera) for camera in cameras)
    if not cameras and machine.is_jetson:
        yield Finding(
            name="camera",
            severity="warning",
            found="no RealSense on USB",
            expected="a RealSense on USB 3",
            remedy="plug it in with a USB 3 cable, then look with lsusb -d 8086:; recordings run "
            "without one",
        )
    if any(camera.has_imu for camera in cameras):
        yield judge(
            "hidraw",
            has_hidraw(root),
            "present" if has_hidraw(root) else "missing, as in the kernel of JetPack 6",
            expected="present: pyrealsense2 from a wheel needs it to find a camera with an IMU",
            remedy="where pyrealsense2 finds no camera though lsusb does, build librealsense with "
            "-DFORCE_RSUSB_BACKEND=ON -DBUILD_PYTHON_BINDINGS=ON, or a kernel with CONFIG_HIDRAW",
            otherwise="warning",
        )


def _camera(camera: UsbCamera) -> Finding:
    if camera.is_recovering:
        return Finding(
            name="camera",
            severity="warning",
            found=f"{camera.product} waits for a firmware",
            expected="a camera with a firmware",
            remedy="give it one: rs-fw-update -r -f FILE (of librealsense)",
        )
    is_fast = camera.speed_mbps >= USB3_MBPS
    return judge(
        "camera",
        is_fast,
        f"{camera.product} on USB {3 if is_fast else 2} ({camera.speed_mbps:.0f} Mbit/s)",
        expected=f"{USB3_MBPS:.0f} Mbit/s or more",
        remedy="use the USB 3 cable that came with it, in a USB 3 port without a hub; if it stays, "
        "turn the plug at the camera",
        otherwise="warning",
    )


def gigabytes(num_bytes: int) -> str:
    return f"{num_bytes / GB:.1f} GB"
