"""python -m tests.aarch64 BUNDLE: the lean wheel on aarch64, in an emulated user space.

Debian 12 for arm64 is unpacked into build/aarch64 once and kept. The wheel and its aarch64 wheels
are installed there without a network, and `anchorvla check`, `run` and `doctor` run under qemu. The
instruction set, the wheels, alignment and numbers are real; speed is not, and there is no GPU.
Debian 12 has Python 3.11: those of JetPack, 3.10 and 3.12, are not in it; `make resolve` looks
after them.

Everything happens in user, mount and process namespaces of its own, with a binfmt_misc of its own:
the machine stays as it is. Exit codes: 0 all well or skipped with the reason, 1 something failed.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import re
import shutil
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from export.release.targets import Target
from export.release.wheelhouse import assemble

ROOT = Path(__file__).parents[1]
DEBIAN = Target(name="Debian 12", python=(3, 11), glibc=36)
SUITE = "bookworm"
QEMU = "qemu-aarch64-static"
PACKAGES = "python3,python3-venv,ca-certificates"
INSTALL = "apt-get install --no-install-recommends debootstrap qemu-user-static"
ELF_AARCH64 = (
    rb"\x7fELF\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\xb7\x00",
    rb"\xff\xff\xff\xff\xff\xff\xff\x00\xff\xff\xff\xff\xff\xff\xff\xff\xfe\xff\xff\xff",
)
"""Magic and mask: 64 bits, little-endian, executable or shared, machine 183."""
NEWNS, NEWUSER, NEWPID = 0x00020000, 0x10000000, 0x20000000
MAPPED_IDS = 65536
ENVIRONMENT = {
    "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
    "HOME": "/root",
    "LANG": "C.UTF-8",
    "OMP_NUM_THREADS": "1",
    "DEBIAN_FRONTEND": "noninteractive",
    "container": "lxc",  # or debootstrap makes device nodes, which a user namespace may not
}


def reasons_to_skip() -> Iterator[str]:
    """What is missing here."""
    for tool in ("debootstrap", QEMU):
        if shutil.which(tool) is None:
            yield f"no {tool}: {INSTALL}"
    if os.geteuid() != 0:
        yield "only root may make the namespaces that are needed"
    elif not shutil.which("mount") or in_namespaces(_register) != 0:
        yield "this kernel gives a user namespace no binfmt_misc of its own (Linux 6.7 does)"


def in_namespaces(call: Callable[[], int]) -> int:
    """Run `call` as root of namespaces of its own, in which all ids are mapped; what it returns."""
    (is_apart, say_apart), (is_mapped, say_mapped) = os.pipe(), os.pipe()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            if ctypes.CDLL(None, use_errno=True).unshare(NEWUSER | NEWNS | NEWPID):
                raise OSError(ctypes.get_errno(), "unshare")
            os.write(say_apart, b".")
            os.close(say_mapped)
            if os.read(is_mapped, 1):
                os.setgid(0)
                os.setuid(0)
                code = _as_first_process(call)
        finally:
            os._exit(code)
    os.close(say_apart)
    os.close(is_mapped)
    if os.read(is_apart, 1):
        for name in ("uid_map", "gid_map"):
            Path(f"/proc/{child}/{name}").write_text(f"0 0 {MAPPED_IDS}")
        os.write(say_mapped, b".")
    os.close(say_mapped)
    os.close(is_apart)
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status)


def _as_first_process(call: Callable[[], int]) -> int:
    """The process that made a process namespace is not in it, its children are."""
    first = os.fork()
    if first == 0:
        code = 1
        try:
            code = call()
        except Exception:  # nobody else sees it: this process ends here
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            os._exit(code)
    _, status = os.waitpid(first, 0)
    return os.waitstatus_to_exitcode(status)


def _register() -> int:
    """Let qemu run what is for aarch64, in this namespace."""
    place = "/proc/sys/fs/binfmt_misc"
    if subprocess.run(
        ["mount", "-t", "binfmt_misc", "none", place], capture_output=True
    ).returncode:
        return 1
    magic, mask = (text.decode() for text in ELF_AARCH64)
    rule = f":aarch64:M::{magic}:{mask}:{shutil.which(QEMU)}:F"
    Path(place, "register").write_text(rule)
    return 0


def inside(root: Path, command: Sequence[str], log: Path) -> int:
    """A command in the emulated user space; what it prints goes to `log`."""

    def run() -> int:
        if _register():
            return 1
        subprocess.run(["mount", "-t", "proc", "none", str(root / "proc")], check=True)
        with log.open("w") as out:
            in_root = ["chroot", str(root), *command]
            return subprocess.run(in_root, env=ENVIRONMENT, stdout=out, stderr=out).returncode

    sys.stdout.flush()
    return in_namespaces(run)


def step(what: str, code: int, start: float, allowed: Sequence[int] = (0,)) -> None:
    """Say what was done and how long it took.

    Raises:
        SystemExit: it failed.
    """
    print(f"aarch64: {what}: {time.monotonic() - start:.0f} s, exit code {code}", flush=True)
    if code not in allowed:
        raise SystemExit(f"error: {what} failed on aarch64")


def make_root(cache: Path) -> Path:
    """Debian for arm64 in `cache`; made once."""
    root, done = cache / "root", cache / "root.done"
    if done.exists():
        return root
    shutil.rmtree(root, ignore_errors=True)
    cache.mkdir(parents=True, exist_ok=True)
    start = time.monotonic()
    unpack = ["debootstrap", "--foreign", "--arch=arm64", "--variant=minbase"]
    with (cache / "debootstrap.log").open("w") as log:
        code = subprocess.run(
            [*unpack, f"--include={PACKAGES}", SUITE, str(root)], stdout=log, stderr=log
        ).returncode
    step(f"unpack {DEBIAN.name} (log in {log.name})", code, start)
    start = time.monotonic()
    log = cache / "second-stage.log"
    code = inside(root, ["/debootstrap/debootstrap", "--second-stage"], log)
    step(f"set it up (log in {log})", code, start)
    done.touch()
    return root


def copy_into(root: Path, name: str, source: Path) -> str:
    """A file or folder below /srv; its path there."""
    target = root / "srv" / name
    if target.is_dir():
        shutil.rmtree(target)
    if source.is_dir():
        shutil.copytree(source, target)
    else:
        shutil.copy(source, target)
    return f"/srv/{name}"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--episode", type=Path, required=True, help="a recording for anchorvla run")
    parser.add_argument("--cache", type=Path, default=ROOT / "build" / "aarch64")
    options = parser.parse_args(arguments)
    if reasons := list(reasons_to_skip()):
        print(f"skipped: {'; '.join(reasons)}")
        return 0
    for path in (options.bundle / "manifest.json", options.episode):
        if not path.is_file():
            parser.error(f"{path}: no such file; make demo or make export writes a bundle")
    cache = options.cache.resolve()
    root = make_root(cache)
    assemble(DEBIAN, ("onnxruntime",), cache / "wheelhouse")
    wheels = copy_into(root, "wheelhouse", cache / "wheelhouse")
    bundle = copy_into(root, "bundle", options.bundle)
    episode = copy_into(root, options.episode.name, options.episode)
    pip = ["/opt/runtime/bin/pip", "install", "--quiet", "--no-index", "--no-deps"]
    pip += [
        "--require-hashes",
        "--find-links",
        f"{wheels}/wheels",
        "-r",
        f"{wheels}/requirements.txt",
    ]
    anchorvla = "/opt/runtime/bin/anchorvla"
    report = ("--report", "/srv/report.html", "--rate-hz", "2", "--max-steps", "4")
    steps: dict[str, tuple[Sequence[str], str]] = {
        "make an environment": (["python3", "-m", "venv", "--clear", "/opt/runtime"], ""),
        "install the wheel": (pip, ""),
        "anchorvla check": ([anchorvla, "check", bundle], r"^ok +actions"),
        "anchorvla run": ([anchorvla, "run", bundle, "--episodes", episode, *report], r"report"),
        "anchorvla doctor": ([anchorvla, "doctor", bundle], r"^aarch64, [1-9]\d* CPUs"),
    }
    for what, (command, words) in steps.items():
        start, log = time.monotonic(), cache / "log.txt"
        code = inside(root, command, log)
        said = log.read_text(errors="replace")
        print(said, end="")
        step(what, code, start, (0, 1) if "doctor" in what else (0,))
        if not re.search(words, said, re.MULTILINE):
            raise SystemExit(f"error: {what} does not say {words!r} on aarch64")
    print("aarch64: the lean wheel works there")
    return 0


if __name__ == "__main__":
    sys.exit(main())
