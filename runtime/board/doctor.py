"""anchorvla doctor [BUNDLE]: what keeps this machine from running a policy, and what helps.

Reads only; it changes nothing and loads no engine. What the runtime imports on a Jetson is tried in
a process of its own. Exit codes: 0 all well, 1 warnings, 2 errors. A
warning costs speed or a safeguard; with an error a policy does not run here, or not this one.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import resource
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from ..bundle import Manifest, read_bundle
from ..errors import BundleError
from .arithmetic import make_twin, needs_bfloat16
from .checks import (
    GB,
    check_cameras,
    check_clocks,
    check_gpu_load,
    check_power_mode,
    check_realtime,
    check_swap,
    check_throttling,
    gigabytes,
)
from .gpu_software import check_gpu_software
from .imports import Imported, try_imports
from .machine import ROOT, Machine, Run, read_machine, run_command
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
    releases_like,
)

EXIT_CODES: dict[Severity, int] = {"ok": 0, "warning": 1, "error": 2}

SPARE_BYTES = 1 * GB
"""Of memory and of disk, beside what the engines take."""
PLAN_FACTOR = 1.5
"""Plan and scratch of an engine over its ONNX file; a guess until boards are measured."""
EVERYWHERE = ("numpy", "tokenizers", "pillow", "msgspec")
ELSEWHERE = ("onnxruntime",)


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
    which: Callable[[str], str | None] = shutil.which
    try_imports: Callable[[], Imported] = try_imports


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
    findings += check_cameras(machine, probe.root)
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
    lines = [f"{machine.board}, {machine.num_cpus} CPUs, {gigabytes(machine.memory_bytes)}"]
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
        tensorrt = probe.version_of("tensorrt") or machine.tensorrt
        rows = releases_for(machine.l4t or "", machine.sm, machine.compatible)
        if machine.l4t is None:
            rows = releases_like(machine.sm, machine.cuda, tensorrt)
        yield judge_gpu(machine.sm, machine.compatible)
        yield judge_jetpack(machine.l4t, machine.sm, rows, has_file=machine.has_release_file)
        yield judge_cuda(machine.cuda, rows)
        yield judge_tensorrt(tensorrt, rows)
    yield judge_python(machine.python, rows)
    for name in (*EVERYWHERE, *(() if machine.is_jetson else ELSEWHERE)):
        yield judge_wheel(name, probe.version_of(name))
    if machine.is_jetson:
        yield from check_gpu_software(
            machine,
            probe.root,
            imported=probe.try_imports(),
            version_of=probe.version_of,
            which=probe.which,
        )


def _board(machine: Machine, probe: Probe) -> Iterator[Finding]:
    yield check_power_mode(machine)
    yield check_clocks(probe.root)
    yield check_throttling(probe.root)
    yield check_gpu_load(probe.run)
    yield check_swap(machine)
    yield check_realtime(probe.realtime_priority())


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
    target = manifest.recipe.target
    here = TARGETS.get(machine.sm or "", "cpu")
    is_for_cpu = bool(manifest.twin_of)
    cannot = needs_bfloat16(manifest) if here == "cpu" else target != "cpu"
    remedy = f"export it again for this board: python -m export build {RECIPES[here]}"
    if here == "cpu":
        remedy = f"run its float32 twin: {make_twin(bundle)}"
        if not cannot:
            remedy = f"it runs, not at its best: python -m export build {RECIPES[here]}"
    elif is_for_cpu:
        remedy = "run the bundle that it is the twin of"
    return judge(
        "recipe",
        here == "cpu" if is_for_cpu else target == here,
        f"{manifest.recipe.name}, made for: {target}"
        + (" (its float32 twin)" if is_for_cpu else ""),
        expected=f"made for: {here}",
        remedy=remedy,
        # What is made for a CPU is float32 and int8, which every GPU has, only not at its best.
        otherwise="error" if cannot and not is_for_cpu else "warning",
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
        f"{gigabytes(machine.available_bytes)} available of {gigabytes(machine.memory_bytes)}",
        expected=f"{gigabytes(needed)} available",
        remedy=remedy,
    )


def _disk(machine: Machine, bundle: Path | None, engines: int, probe: Probe) -> Finding:
    place = (bundle or Path()).absolute()
    needed = SPARE_BYTES + (round(PLAN_FACTOR * engines) if machine.is_jetson else 0)
    free = probe.free_bytes(place)
    return judge(
        "disk",
        free >= needed,
        f"{gigabytes(free)} free at {place}",
        expected=f"{gigabytes(needed)} free",
        remedy=f"free {gigabytes(needed - free)} there (old plans lie in BUNDLE/plans), or move "
        "the bundle to a larger disk",
    )
