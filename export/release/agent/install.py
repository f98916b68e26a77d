"""The steps that make a release whole and prove it on this board, before anything runs it.

Each leaves a mark when all that it wrote is on the disk, and does nothing where the mark is there.
What was cut off is made again from its beginning, but for plans, which are kept one by one.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from export.release.agent.place import (
    BUNDLE,
    PLANS,
    PROVEN,
    RELEASE,
    REQUIREMENTS,
    VENV,
    WHEELS,
    AgentError,
    Place,
    led_to,
    write_json,
)
from export.release.agent.trial import trial_of
from runtime.storage.files import sync

WHOLE = ".whole"
"""In a virtual environment of which nothing is missing."""
PACKAGES = Path("lib", "python{}.{}".format(*sys.version_info[:2]), "site-packages")
"""In an environment of this Python."""
CUDA = "/usr/local/cuda/bin"
BENCH_TICKS = 20
LAST_LINES = 5
Say = Callable[[str], None]


def progress(place: Place, release: str, description: Mapping[str, Any]) -> dict[str, Any]:
    """What was done of a release already, by the marks of the steps.

    Returns:
        `missing_bytes` to be sent, `unpacked`, `environment`, `proven`, `current`, `trial`.
    """
    there = {
        entry["sha256"]
        for other in place.all()
        for entry in place.described(other)["files"].values()
    }
    missing = 0
    for sha256, size in {(e["sha256"], e["size"]) for e in description["files"].values()}:
        if sha256 not in there and not (place.incoming / sha256).is_file():
            partial = place.incoming / f"{sha256}.partial"
            missing += size - (partial.stat().st_size if partial.is_file() else 0)
    folder = place.folder(release)
    return {
        "missing_bytes": missing,
        "unpacked": (folder / RELEASE).is_file(),
        "environment": (folder / VENV / WHOLE).is_file(),
        "proven": (folder / PROVEN).is_file(),
        "current": led_to(place.current) == release,
        "trial": trial_of(place) is not None,
    }


def unpack(place: Place, release: str, description: Mapping[str, Any]) -> bool:
    """Put the files of a release in their places, from what was received.

    Returns:
        Whether there was anything to do.

    Raises:
        AgentError: a file is missing.
    """
    folder = place.folder(release)
    if (folder / RELEASE).is_file():
        return False
    place.releases.mkdir(parents=True, exist_ok=True)
    partial = place.releases / f".{release}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    folders = {partial, partial / BUNDLE, partial / WHEELS}
    for name in description["files"]:
        folders |= {partial / parent for parent in Path(name).parents}
    for path in sorted(folders):
        path.mkdir(mode=0o755)
    for name, entry in description["files"].items():
        try:
            os.link(place.incoming / entry["sha256"], partial / name)
        except FileNotFoundError:
            raise AgentError(f"{name} of {release} was not received; flash again") from None
        (partial / name).chmod(0o644)
    write_json(partial / RELEASE, description)
    for path in folders:
        sync(path)
    partial.rename(folder)
    sync(place.releases)
    return True


def make_environment(place: Place, release: str, say: Say) -> bool:
    """A virtual environment in the release, from its wheels alone; it sees the system's TensorRT.

    That of a release with the same requirements is taken over: pycuda is not built again.

    Raises:
        AgentError: pip refuses, or something that it needs is not on this board.
    """
    folder = place.folder(release)
    venv = folder / VENV
    if (venv / WHOLE).is_file():
        return False
    shutil.rmtree(venv, ignore_errors=True)
    if other := _same_environment(place, release):
        _take_over(place.folder(other) / VENV, venv)
        write_json(venv / WHOLE, {"from": other})
        return True
    pip = _installed_pip(place)
    python = [sys.executable, "-I", "-m", "venv", "--system-site-packages"]
    python += ["--without-pip"] * bool(pip) + [str(venv)]
    _run(python, say, "no virtual environment can be made: sudo apt install python3-venv")
    for path in pip:
        shutil.copytree(path, venv / PACKAGES / path.name, copy_function=os.link)
    _run(
        [
            *(str(venv / "bin/python"), "-I", "-m", "pip", "--isolated", "install"),
            *("--disable-pip-version-check", "--no-input", "--no-cache-dir", "--quiet"),
            *("--no-index", "--no-deps", "--require-hashes"),
            *("--find-links", str(folder / WHEELS), "-r", str(folder / REQUIREMENTS)),
        ],
        say,
        "the release's packages do not install; pycuda is built here and needs nvcc, g++ and "
        "python3-dev",
    )
    os.sync()
    write_json(venv / WHOLE, {"from": release})
    return True


def _same_environment(place: Place, release: str) -> str | None:
    """Another release whose environment is whole, of the same packages and this Python."""
    wanted = place.described(release)["files"][REQUIREMENTS]["sha256"]
    for other in _whole_environments(place):
        if place.described(other)["files"][REQUIREMENTS]["sha256"] == wanted:
            return other
    return None


def _installed_pip(place: Place) -> list[Path]:
    """Its folders in another release's environment: a new one takes as long as all the rest."""
    for other in _whole_environments(place):
        packages = place.folder(other) / VENV / PACKAGES
        if (packages / "pip").is_dir():
            return [packages / "pip", *packages.glob("pip-*.dist-info")]
    return []


def _whole_environments(place: Place) -> Iterator[str]:
    """Releases that have one of this Python; the newest first."""
    for release in reversed(place.all()):
        venv = place.folder(release) / VENV
        if (venv / WHOLE).is_file() and _version(venv) == sys.version_info[:2]:
            yield release


def _version(venv: Path) -> tuple[int, ...] | None:
    """Of an environment's Python, while that is there."""
    found = sorted((venv / "lib").glob("python3.*"))
    if len(found) != 1 or not (venv / "bin/python").exists():
        return None
    return tuple(int(word) for word in found[0].name.removeprefix("python").split("."))


def _take_over(other: Path, venv: Path) -> None:
    """The files are shared, but for those that say where they lie."""
    shutil.copytree(
        other, venv, symlinks=True, copy_function=os.link, ignore=shutil.ignore_patterns(WHOLE)
    )
    scripts = [path for path in (venv / "bin").iterdir() if not path.is_symlink()]
    for path in [venv / "pyvenv.cfg", *scripts]:
        data, mode = path.read_bytes(), path.stat().st_mode
        path.unlink()
        path.write_bytes(data.replace(os.fsencode(other), os.fsencode(venv)))
        path.chmod(mode)
    os.sync()


def build_plans(place: Place, release: str, say: Say) -> bool:
    """TensorRT's plans, where the release is for TensorRT. A plan that is there and fits is kept.

    Raises:
        AgentError: one cannot be built, or differs from its module.
    """
    if place.described(release)["backend"] != "tensorrt" or _is_proven(place, release):
        return False
    _link_plans(place, release)
    _anchorvla(place, release, ["build", BUNDLE], say, "plans cannot be built")
    os.sync()
    return True


def prove(place: Place, release: str, say: Say) -> dict[str, Any]:
    """Does this board compute what the exporter measured, and soon enough? Then it may be run.

    Returns:
        What was measured.

    Raises:
        AgentError: it does not, or the bundle is not signed by anybody whom the board trusts.
    """
    folder = place.folder(release)
    if _is_proven(place, release):
        return dict(json.loads((folder / PROVEN).read_bytes()))
    description = place.described(release)
    options = ["--backend", description["backend"]]
    _anchorvla(place, release, ["check", BUNDLE, *options], say, "parity with the golden data")
    words = ["bench", BUNDLE, *options, "--ticks", str(BENCH_TICKS)]
    said = _anchorvla(place, release, words, lambda line: None, "the latency test")
    tick = json.loads(said[-1])["warm"]["tick"]
    budget = description["budget_ms"]
    if budget is not None and not tick["p99"] <= budget:
        raise AgentError(
            f"{release}: a warm tick takes {tick['p99']:.1f} ms (99th percentile of {tick['n']}), "
            f"its budget is {budget:g} ms: look at power mode and clocks with anchorvla doctor, or "
            "flash with another --budget-ms"
        )
    proven = {"at": time.time(), "warm_p50_ms": tick["p50"], "warm_p99_ms": tick["p99"]}
    write_json(folder / PROVEN, proven)
    return proven


def drop(place: Place, release: str) -> bool:
    """Remove a release that nothing leads to; what was received of it stays for the next try.

    Raises:
        AgentError: it is current, the one before, or on trial.
    """
    if release in _needed(place):
        raise AgentError(f"{release}: in use; roll back first")
    folder = place.folder(release)
    if not folder.exists():
        return False
    _remove(place, release)
    return True


def clean(place: Place, keep: int = 0) -> list[str]:
    """Remove releases that nothing leads to, but for the newest `keep`, and what is left of
    uploads.

    Returns:
        Their names.
    """
    needed = _needed(place)
    others = [release for release in place.all() if release not in needed]
    removed = others[: len(others) - keep] if keep else others
    for release in removed:
        _remove(place, release)
    if place.releases.is_dir():
        for path in place.releases.iterdir():
            if path.name.startswith("."):
                shutil.rmtree(path, ignore_errors=True)
    shutil.rmtree(place.incoming, ignore_errors=True)
    return removed


def doctor(place: Place, release: str, say: Say) -> int:
    """What keeps this machine from running the release; the doctor's exit code."""
    command = [*_program(place, release), "doctor", BUNDLE]
    done = _popen(command, place, release)
    assert done.stdout is not None
    for line in done.stdout:
        say(line.rstrip())
    return done.wait()


def _remove(place: Place, release: str) -> None:
    """Under another name first, so that no half of it is ever taken for a release."""
    gone = place.releases / f".{release}.removed"
    shutil.rmtree(gone, ignore_errors=True)
    place.folder(release).rename(gone)
    sync(place.releases)
    shutil.rmtree(gone, ignore_errors=True)


def _needed(place: Place) -> set[str]:
    trial = trial_of(place)
    before = None if trial is None else trial.previous
    leads = (led_to(place.current), led_to(place.previous), before)
    return {release for release in leads if release is not None}


def _is_proven(place: Place, release: str) -> bool:
    return (place.folder(release) / PROVEN).is_file()


def _link_plans(place: Place, release: str) -> None:
    """Take over plans of engines that another release has too; `anchorvla build` keeps those that
    fit this machine, and makes a new file of any other."""
    mine = place.described(release)["files"]
    for other in reversed([name for name in place.all() if name != release]):
        theirs = place.described(other)["files"]
        for plan in (place.folder(other) / BUNDLE / PLANS).glob("*/*"):
            engine = plan.stem
            wanted = _engine(mine, engine)
            to = place.folder(release) / BUNDLE / PLANS / plan.parent.name / plan.name
            is_complete = all(plan.with_suffix(s).is_file() for s in (".plan", ".json"))
            if wanted and wanted == _engine(theirs, engine) and is_complete and not to.exists():
                to.parent.mkdir(parents=True, exist_ok=True)
                os.link(plan, to)


def _engine(files: Mapping[str, Any], engine: str) -> dict[str, str]:
    """Its files in a bundle, by name."""
    folder = Path(BUNDLE, "engines")
    paths = [p for p in map(Path, files) if p.parent == folder and p.stem == engine]
    return {path.name: files[str(path)]["sha256"] for path in paths}


def _program(place: Place, release: str) -> list[str]:
    return [str(place.folder(release) / VENV / "bin/python"), "-I", "-u", "-m", "runtime"]


def _anchorvla(place: Place, release: str, words: Sequence[str], say: Say, what: str) -> list[str]:
    return _run([*_program(place, release), *words], say, what, place, release)


def environment(place: Place) -> dict[str, str]:
    """Of the runtime on this board."""
    path = os.environ.get("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
    return {**os.environ, "PATH": f"{CUDA}:{path}", "ANCHORVLA_TRUST": str(place.trust)}


def _popen(
    command: Sequence[str], place: Place | None = None, release: str | None = None
) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        cwd=None if place is None or release is None else place.folder(release),
        env=environment(place or Place(Path("/"))),
    )


def _run(
    command: Sequence[str],
    say: Say,
    what: str,
    place: Place | None = None,
    release: str | None = None,
) -> list[str]:
    """Its lines, each said as it comes.

    Raises:
        AgentError: it failed; what it calls an error, or else its last lines, tell why.
    """
    lines = []
    with _popen(command, place, release) as done:
        assert done.stdout is not None
        for line in done.stdout:
            lines.append(line.rstrip())
            say(lines[-1])
    if done.returncode:
        why = [line for line in lines if line.lower().startswith(("fail", "error"))] or lines
        words = " | ".join(line for line in why[-LAST_LINES:] if line)
        raise AgentError(f"{what}: {words or f'exit code {done.returncode}'}")
    return lines
