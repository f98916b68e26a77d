"""What this runtime is known to work on: a table of JetPack releases, and software held against it.

From NVIDIA's release notes. A row is for a board whose L4T lies in it and whose GPU it lists; rows
overlap where a later TensorRT may be installed in place of the one that JetPack brings.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

Severity = Literal["ok", "warning", "error"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """One thing that was looked at."""

    name: str
    severity: Severity
    found: str
    expected: str
    remedy: str = ""
    """What to type or do; empty only if all is well."""


def judge(
    name: str,
    fits: bool,
    found: str,
    *,
    expected: str,
    remedy: str,
    otherwise: Severity = "error",
) -> Finding:
    """A finding that is well if it `fits`, and else has this severity and remedy."""
    return Finding(
        name=name,
        severity="ok" if fits else otherwise,
        found=found,
        expected=expected,
        remedy="" if fits else remedy,
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class Release:
    """A range of JetPack releases with the same software."""

    jetpack: str
    """For people."""
    first: tuple[int, ...]
    """Lowest L4T, as numbers: (36, 4)."""
    last: tuple[int, ...]
    """Highest L4T; only as many numbers as stand here count, so (36, 5) covers 36.5.2."""
    cuda: str
    """Major and minor; empty where NVIDIA names none."""
    tensorrt: str
    """Major and minor."""
    python: str
    """Major and minor; the TensorRT bindings of JetPack are for no other."""
    sms: tuple[str, ...]
    """Compute capabilities of its GPUs."""
    modules: tuple[str, ...] = ()
    """Part numbers in the device tree, where not every board with such a GPU is meant."""


RELEASES = (
    Release(
        jetpack="6.1 to 6.2.2",
        first=(36, 4),
        last=(36, 5),
        cuda="12.6",
        tensorrt="10.3",
        python="3.10",
        sms=("8.7",),
    ),
    Release(
        jetpack="7.2",
        first=(39, 2),
        last=(39, 2),
        cuda="13.2",
        tensorrt="10.16",
        python="3.12",
        sms=("8.7", "11.0"),
    ),
    Release(
        jetpack="7.2.2",
        first=(39, 2, 2),
        last=(39, 2),
        cuda="",
        tensorrt="11.4",
        python="3.12",
        sms=("8.7", "11.0"),
        modules=("p3701", "p3834"),  # AGX Orin, Thor
    ),
)

JETPACKS = {
    "35": "5",
    "36.2": "6.0 (developer preview)",
    "36.3": "6.0",
    "36.4": "6.1",
    "36.4.3": "6.2",
    "36.4.4": "6.2.1",
    "36.4.7": "6.2.1",
    "36.5": "6.2.2",
    "38.2": "7.0",
    "38.4": "7.1",
    "39.2": "7.2",
    "39.2.1": "7.2.1",
    "39.2.2": "7.2.2",
}
"""L4T -> JetPack. The longest entry that a version begins with counts."""

SMS = {"tegra234": "8.7", "tegra35": "8.7", "tegra264": "11.0", "tegra38": "11.0"}
"""System on chip -> compute capability of its GPU: Orin and Thor. By the device tree, and by the
chip's number as the kernel has it: 0x23 and 0x26."""

TARGETS = {"8.7": "orin", "11.0": "thor"}
"""Compute capability -> target of the recipes that are made for it."""

RECIPES = {"orin": "orin-mixed", "thor": "thor-fp8", "cpu": "float32"}
"""Target -> the recipe to begin with."""


OLDEST_PYTHON = (3, 10)
OLDEST_TENSORRT = (10, 3)
RELEASE_FILE = "/etc/nv_tegra_release"
PIP = "python3 -m pip install --no-deps"
INSTALL = {
    "tensorrt": "sudo apt install python3-libnvinfer, and make the environment so that it sees it: "
    "python3 -m venv --system-site-packages VENV",
    "pycuda": f"{PIP} -r requirements/robot-tensorrt.txt (it compiles, which takes nvcc, g++ and "
    "the headers of Python)",
    "cuda-bindings": f"{PIP} -r requirements/robot-tensorrt.txt, which has the one of each JetPack",
    "onnxruntime": f"{PIP} -r requirements/robot-onnxruntime.txt",
}
"""How, where it is not in requirements/robot.txt."""


CUDA_ERRORS = {
    35: "the driver is older than the CUDA that cuda.bindings was made for; install the one of "
    f"this JetPack: {PIP} -r requirements/robot-tensorrt.txt",
}
"""Number of an error of CUDA's runtime -> what it means, and what to do."""


def numbers_of(version: str) -> tuple[int, ...]:
    """`36.4.3` or `10.3.0.30-1+cuda12.5` -> the numbers before anything else."""
    found: list[int] = []
    for part in version.replace("-", ".").replace("+", ".").split("."):
        if not part.isdigit():
            break
        found.append(int(part))
    return tuple(found)


def major_minor(version: str) -> str:
    """`10.3.0.30` -> `10.3`."""
    return ".".join(map(str, numbers_of(version)[:2]))


def jetpack_of(l4t: str) -> str | None:
    """JetPack that an L4T release belongs to, `None` if the table has no such release."""
    numbers = numbers_of(l4t)
    for length in range(len(numbers), 0, -1):
        name = ".".join(map(str, numbers[:length]))
        if name in JETPACKS:
            return JETPACKS[name]
    return None


def releases_for(l4t: str, sm: str | None, compatible: Iterable[str]) -> tuple[Release, ...]:
    """Rows of the table for this board with this L4T; none where it is not known to work.

    Args:
        sm: None where nobody says which GPU it is: rows of any.
        compatible: strings of the device tree: `nvidia,p3701-0005`.
    """
    numbers, names = numbers_of(l4t), " ".join(compatible)
    return tuple(
        row
        for row in RELEASES
        if row.first <= numbers
        and numbers[: len(row.last)] <= row.last
        and (sm is None or sm in row.sms)
        and (not row.modules or any(module in names for module in row.modules))
    )


def releases_like(sm: str | None, cuda: str | None, tensorrt: str | None) -> tuple[Release, ...]:
    """Rows of the table with this software, where nobody says which Jetson Linux it is."""
    return tuple(
        row
        for row in RELEASES
        if sm in row.sms and _is_like(cuda, {row.cuda}) and _is_like(tensorrt, {row.tensorrt})
    )


def _is_like(version: str | None, known: Iterable[str]) -> bool:
    """Whether `version` is one of `known`, as far as both say; an empty one says nothing."""
    numbers = numbers_of(version or "")
    return bool(numbers) and any(
        numbers[: len(row)] == row[: len(numbers)] for row in map(numbers_of, known)
    )


def judge_gpu(sm: str | None, compatible: Sequence[str]) -> Finding:
    """Is it one that recipes are made for?"""
    return judge(
        "GPU",
        sm in TARGETS,
        f"SM {sm}" if sm else f"unknown: {', '.join(compatible) or 'no device tree'}",
        expected=" or ".join(f"SM {known} ({target})" for known, target in TARGETS.items()),
        remedy="run it on an Orin or a Thor; in a container, mount the board's /proc/device-tree",
    )


def judge_jetpack(
    l4t: str | None, sm: str | None, rows: Sequence[Release], *, has_file: bool
) -> Finding:
    """Older than the table cannot work; between its rows and behind the last nobody knows.

    Args:
        rows: of this release; where nobody says which it is, those with the same software.
        has_file: whether the file is there that should say it.
    """
    known = [row.jetpack for row in RELEASES if sm is None or sm in row.sms]
    expected = "JetPack " + " or ".join(known)
    flash = f"flash {expected} with NVIDIA's SDK Manager"
    is_too_old = l4t is not None and numbers_of(l4t) < min(row.first for row in RELEASES)
    if l4t is None:
        found = f"{'no release in' if has_file else 'no'} {RELEASE_FILE}"
        if rows:
            found += f"; GPU, CUDA and TensorRT are those of JetPack {rows[0].jetpack}"
        remedy = (
            "in a container, mount that file from the board: docker run --volume "
            f"{RELEASE_FILE}:{RELEASE_FILE}:ro; on a board that has none, {flash}"
        )
    else:
        found = f"JetPack {jetpack_of(l4t) or '?'} (L4T {l4t})"
        why = "nobody has tried this one"
        if is_too_old:
            why = "engines need TensorRT 10.3 or newer, which this one has not"
        remedy = f"{flash}: {why}"
    return judge(
        "JetPack",
        l4t is not None and bool(rows),
        found,
        expected=expected,
        remedy=remedy,
        otherwise="error" if is_too_old or (l4t is None and not rows) else "warning",
    )


def judge_cuda(version: str | None, rows: Sequence[Release]) -> Finding:
    """The toolkit builds pycuda and has the libraries; engines do not depend on its version."""
    known = {row.cuda for row in rows if row.cuda}
    return judge(
        "CUDA",
        version is not None and (not known or _is_like(version, known)),
        version or "none in /usr/local/cuda, and no libcudart",
        expected=" or ".join(sorted(known)) or "any",
        remedy="sudo apt install nvidia-jetpack, and point /usr/local/cuda at its toolkit",
        otherwise="warning",
    )


def judge_tensorrt(version: str | None, rows: Sequence[Release]) -> Finding:
    """Plans belong to one release of it."""
    known = [row.tensorrt for row in rows]
    is_new = numbers_of(version or "") >= OLDEST_TENSORRT
    return judge(
        "TensorRT",
        _is_like(version, known) if known else is_new,
        version or "none",
        expected=" or ".join(known) or "10.3 or newer",
        remedy="sudo apt install tensorrt python3-libnvinfer, the release that this JetPack has; "
        "then build the plans again: anchorvla build BUNDLE",
    )


def judge_python(version: str, rows: Sequence[Release]) -> Finding:
    """The interpreter that runs this."""
    known = sorted({row.python for row in rows})
    wanted = known[-1] if known else "3.12"
    return judge(
        "Python",
        major_minor(version) in known if known else numbers_of(version) >= OLDEST_PYTHON,
        version,
        expected=" or ".join(known) or "3.10 or newer",
        remedy=f"python{wanted} -m venv --system-site-packages VENV, and install the runtime there"
        + ("; JetPack's TensorRT bindings are for no other Python" if known else ""),
    )


def judge_wheel(name: str, version: str | None) -> Finding:
    """Is a distribution installed?"""
    return judge(
        name,
        version is not None,
        version or "not installed",
        expected="installed",
        remedy=INSTALL.get(name, f"{PIP} -r requirements/robot.txt"),
    )
