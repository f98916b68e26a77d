"""anchorvla doctor [BUNDLE]: what keeps this machine from running a policy, and what helps.

Reads only; it changes nothing and loads no engine. Exit codes: 0 all well, 1 warnings, 2 errors. A
warning costs speed or a safeguard; with an error a policy does not run here, or not this one.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import re
import resource
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from .bundle import Manifest, read_bundle
from .errors import BundleError
from .machine import (
    ROOT,
    Clock,
    Machine,
    PowerMode,
    Run,
    UsbCamera,
    has_hidraw,
    read_cameras,
    read_clocks,
    read_machine,
    read_throttling,
    run_command,
)
from .supported import (
    RECIPES,
    TARGETS,
    Finding,
    Release,
    Severity,
    judge,
    judge_cuda,
    judge_gpu,
    judge_jetpack,
    judge_python,
    judge_tensorrt,
    judge_wheel,
    releases_for,
)
from .tegrastats import read_tegrastats

EXIT_CODES: dict[Severity, int] = {"ok": 0, "warning": 1, "error": 2}

GB = 10**9
SPARE_BYTES = 1 * GB
"""Of memory and of disk, beside what the engines take."""
PLAN_FACTOR = 1.5
"""Plan and scratch of an engine over its ONNX file; a guess until boards are measured."""
ENOUGH_MEMORY_BYTES = 32 * GB
"""A board with so much builds its plans without swap."""
USB3_MBPS = 5000.0
IDLE_PERCENT = 20.0
EVERYWHERE = ("numpy", "tokenizers", "pillow")
ON_A_JETSON = ("tensorrt", "pycuda", "cuda-bindings")
ELSEWHERE = ("onnxruntime",)
REBUILD = "build the plans again, they belong to their mode: anchorvla build BUNDLE"


def installed_version(distribution: str) -> str | None:
    """Of a Python distribution, without importing it."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def free_bytes(path: Path) -> int:
    """On the disk that holds `path`, or will hold it."""
    present = next(p for p in (path.absolute(), *path.absolute().parents) if p.exists())
    return shutil.disk_usage(present).free


def realtime_priority() -> int:
    """The highest that this user may ask for; -1 is any."""
    return resource.getrlimit(resource.RLIMIT_RTPRIO)[0]


@dataclass(frozen=True, kw_only=True, slots=True)
class Probe:
    """How the machine is asked, so that a captured board can answer."""

    root: Path = ROOT
    run: Run = run_command
    version_of: Callable[[str], str | None] = installed_version
    free_bytes: Callable[[Path], int] = free_bytes
    realtime_priority: Callable[[], int] = realtime_priority


def doctor(
    machine: Machine, bundle: Path | None = None, probe: Probe | None = None
) -> list[Finding]:
    """Look at everything. What does not apply to this kind of machine is left out.

    Args:
        machine: what `read_machine` returned.
        bundle: that is to run here.
        probe: this machine by default.
    """
    probe = probe or Probe()
    findings = [*_software(machine, probe)]
    if machine.is_jetson:
        findings += _board(machine, probe)
    findings += _cameras(machine, probe.root)
    engines = 0
    if bundle is not None:
        manifest, finding = _read(bundle)
        findings.append(finding)
        if manifest is not None:
            findings.append(_recipe(machine, bundle, manifest))
            engines = _engine_bytes(manifest)
    return [*findings, _memory(machine, engines), _disk(machine, bundle, engines, probe)]


def exit_code(findings: Sequence[Finding]) -> int:
    """Of the worst finding."""
    return max((EXIT_CODES[finding.severity] for finding in findings), default=0)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the verb."""
    parser.add_argument(
        "bundle", type=Path, nargs="?", metavar="BUNDLE", help="check that it fits this machine too"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def main_doctor(options: argparse.Namespace, probe: Probe | None = None) -> int:
    """Print what was found; the exit code of the worst finding."""
    probe = probe or Probe()
    machine = read_machine(probe.root, probe.run)
    findings = doctor(machine, options.bundle, probe)
    if options.json:
        print(
            json.dumps(
                {"machine": asdict(machine), "findings": [asdict(f) for f in findings]}, indent=1
            )
        )
    else:
        print(_table(machine, findings))
    return exit_code(findings)


def _table(machine: Machine, findings: Sequence[Finding]) -> str:
    width = max(len(finding.name) for finding in findings)
    lines = [f"{machine.board}, {machine.num_cpus} CPUs, {_gb(machine.memory_bytes)}"]
    for finding in findings:
        lines.append(f"{finding.severity:<7}  {finding.name:<{width}}  {finding.found}")
        if finding.severity != "ok":
            lines.append(f"{'':<{width + 11}}expected: {finding.expected}")
            lines.append(f"{'':<{width + 11}}to do: {finding.remedy}")
    counts = {word: sum(f.severity == word for f in findings) for word in EXIT_CODES}
    lines.append(", ".join(f"{word}: {count}" for word, count in counts.items()))
    return "\n".join(lines)


def _software(machine: Machine, probe: Probe) -> Iterator[Finding]:
    rows: tuple[Release, ...] = ()
    if machine.is_jetson:
        rows = releases_for(machine.l4t or "", machine.sm, machine.compatible)
        yield judge_gpu(machine.sm, machine.compatible)
        yield judge_jetpack(machine.l4t, machine.sm, rows)
        yield judge_cuda(machine.cuda, rows)
        yield judge_tensorrt(probe.version_of("tensorrt") or machine.tensorrt, rows)
    yield judge_python(machine.python, rows)
    for name in (*EVERYWHERE, *(ON_A_JETSON if machine.is_jetson else ELSEWHERE)):
        yield judge_wheel(name, probe.version_of(name))


def _board(machine: Machine, probe: Probe) -> Iterator[Finding]:
    yield _power_mode(machine)
    yield _clocks(probe.root)
    yield _throttling(probe.root)
    yield _gpu_load(probe.run)
    yield _swap(machine)
    yield _realtime(probe.realtime_priority())


def _power_mode(machine: Machine) -> Finding:
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


def _clocks(root: Path) -> Finding:
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


def _throttling(root: Path) -> Finding:
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


def _gpu_load(run: Run) -> Finding:
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


def _swap(machine: Machine) -> Finding:
    return judge(
        "swap",
        machine.swap_bytes > 0 or machine.memory_bytes >= ENOUGH_MEMORY_BYTES,
        _gb(machine.swap_bytes),
        expected=f"some, with less than {_gb(ENOUGH_MEMORY_BYTES)} of memory",
        remedy="building plans may run out of memory: sudo fallocate -l 8G /swapfile && sudo chmod "
        "600 /swapfile && sudo mkswap /swapfile && sudo swapon /swapfile",
        otherwise="warning",
    )


def _realtime(priority: int) -> Finding:
    return judge(
        "real time",
        priority != 0,
        "any priority" if priority < 0 else f"priorities up to {priority} (RLIMIT_RTPRIO)",
        expected="a priority above 0",
        remedy='echo "$USER - rtprio 80" | sudo tee /etc/security/limits.d/90-anchorvla.conf, and '
        "log in again; for a service: LimitRTPRIO=80",
        otherwise="warning",
    )


def _cameras(machine: Machine, root: Path) -> Iterator[Finding]:
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
    if cameras:
        yield judge(
            "hidraw",
            has_hidraw(root),
            "present" if has_hidraw(root) else "missing, as in the kernel of JetPack 6",
            expected="present: pyrealsense2 from a wheel needs it to find a camera",
            remedy="where pyrealsense2 finds no camera though lsusb does, build librealsense with "
            "-DFORCE_RSUSB_BACKEND=ON -DBUILD_PYTHON_BINDINGS=ON, or a kernel with CONFIG_HIDRAW",
            otherwise="warning",
        )


def _camera(camera: UsbCamera) -> Finding:
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


def _read(bundle: Path) -> tuple[Manifest | None, Finding]:
    try:
        manifest, found = read_bundle(bundle).manifest, f"{bundle} is whole"
    except (BundleError, OSError) as error:
        manifest, found = None, str(error)
    return manifest, judge(
        "bundle",
        manifest is not None,
        found,
        expected="a whole bundle that this runtime reads",
        remedy="copy it again from where it was exported, or export it again: "
        "python -m export build",
    )


def _recipe(machine: Machine, bundle: Path, manifest: Manifest) -> Finding:
    recipe = manifest.quantization.get("recipe")
    target = str(recipe.get("target")) if isinstance(recipe, dict) else "unknown"
    here = TARGETS.get(machine.sm or "", "cpu")
    is_twin = here == "cpu" and manifest.description.startswith("float32 twin of ")
    remedy = f"export it again for this board: python -m export build {RECIPES[here]}"
    if here == "cpu":
        remedy = f"run its float32 twin: python -m export twin --bundle {bundle} --out TWIN"
    return judge(
        "recipe",
        is_twin or target == here,
        f"{manifest.recipe}, made for: {target}" + (" (its float32 twin)" if is_twin else ""),
        expected=f"made for: {here}",
        remedy=remedy,
        # What is made for a CPU is float32 and int8, which every GPU has, only not at its best.
        otherwise="warning" if target in ("cpu", "unknown") else "error",
    )


def _engine_bytes(manifest: Manifest) -> int:
    return sum(f.bytes for name, f in manifest.files.items() if name.startswith("engines/"))


def _memory(machine: Machine, engines: int) -> Finding:
    needed = SPARE_BYTES + round(PLAN_FACTOR * engines)
    if needed > machine.memory_bytes:
        remedy = "this machine is too small for these engines: export a smaller recipe"
    elif machine.is_jetson:
        remedy = "end other programs, and the desktop: sudo systemctl isolate multi-user.target"
    else:
        remedy = "end other programs"
    return judge(
        "memory",
        machine.available_bytes >= needed,
        f"{_gb(machine.available_bytes)} available of {_gb(machine.memory_bytes)}",
        expected=f"{_gb(needed)} available",
        remedy=remedy,
    )


def _disk(machine: Machine, bundle: Path | None, engines: int, probe: Probe) -> Finding:
    place = (bundle or Path()).absolute()
    needed = SPARE_BYTES + (round(PLAN_FACTOR * engines) if machine.is_jetson else 0)
    free = probe.free_bytes(place)
    return judge(
        "disk",
        free >= needed,
        f"{_gb(free)} free at {place}",
        expected=f"{_gb(needed)} free",
        remedy=f"free {_gb(needed - free)} there (old plans lie in BUNDLE/plans), or move the "
        "bundle to a larger disk",
    )


def _gb(num_bytes: int) -> str:
    return f"{num_bytes / GB:.1f} GB"
