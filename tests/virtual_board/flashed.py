"""python -m tests.virtual_board.flashed BUNDLE: a real release on a virtual board, from end to end.

A copy of BUNDLE is signed and flashed with the runtime's own wheel and all that it needs, onto a
Debian machine with real systemd and the simulated TensorRT. Then: the same flash again, the same
bundle with another number, a boot, a process that hangs, and releases that fail in four ways. What
was promised of each is checked; figures are printed.
"""

from __future__ import annotations

import argparse
import re
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

import numpy as np

from export.errors import ExportError
from export.release.config import (
    BoardConfig,
    FlashConfig,
    KeysConfig,
    ReleaseConfig,
    RollbackConfig,
    SignConfig,
    StatusConfig,
)
from export.release.flash import flash, rollback
from export.release.signing import make_keys, sign
from export.release.status import status
from export.release.targets import target_of
from export.release.wheelhouse import assemble
from tests.families import list_again
from tests.virtual_board.board import VirtualBoard, make_booted
from tests.virtual_board.image import CACHE, make_image, reasons_to_skip
from tests.virtual_board.simulated import install_simulated_tensorrt

TARGET = target_of("x86_64", (3, 11), "2.36")
"""Debian 12. The simulated TensorRT computes with ONNX Runtime, and pycuda is a part of it."""
WAIT_S = 600.0


class Broken(Exception):
    """What was promised did not hold."""


def check(holds: object, words: str) -> None:
    if not holds:
        raise Broken(words)


class Scene:
    """The board, and what is flashed to it."""

    def __init__(self, work: Path, cache: Path, bundle: Path) -> None:
        image = make_image(cache)
        self.virtual = VirtualBoard(work / "board", image, booted=make_booted(image, cache))
        self.bundle, self.keys, self.number = work / "bundle", work / "keys", 0
        shutil.copytree(bundle, self.bundle, ignore=shutil.ignore_patterns("plans"))
        make_keys(KeysConfig(out=self.keys))
        options = [
            f"UserKnownHostsFile={self.virtual.folder / 'known_hosts'}",
            "GlobalKnownHostsFile=none",
            f"IdentityFile={image.key.resolve()}",
            "IdentitiesOnly=yes",
        ]
        self.wheels = assemble(TARGET, ("onnxruntime", "serve", "signed"), work / "wheels").folder
        host = f"robot@127.0.0.1:{self.virtual.port}"
        self.board = BoardConfig(host=host, ssh_option=tuple(options))

    def sign(self) -> None:
        self.number += 1
        key = self.keys / "release.key"
        sign(SignConfig(bundle=self.bundle, key=key, number=self.number))

    def flash(self, **changes: object) -> str:
        """What is printed."""
        given = {"health_s": WAIT_S, "wheelhouse": self.wheels} | changes
        release = ReleaseConfig(bundle=self.bundle, trust=self.keys / "release.pub", **given)  # type: ignore[arg-type]
        return said(lambda: flash(FlashConfig(board=self.board, release=release)))

    def refused(self, **changes: object) -> str:
        """The error of a flash that has to fail; the board has to run what it ran before."""
        before = self.current()
        try:
            self.flash(**changes)
        except ExportError as error:
            check(self.current() == before, f"{self.current()} is current, {before} was before")
            return str(error)
        raise Broken(f"a flash with {changes} was confirmed")

    def spoil_golden(self) -> None:
        """Golden data of another policy: what one stage is said to compute, it does not."""
        path = self.bundle / "golden.npz"
        with np.load(path) as file:
            golden = {name: file[name] for name in file.files}
        golden["stage/suffix_hidden"] += 0.01
        np.savez(path, **golden)
        list_again(self.bundle, path.name)

    def status(self) -> str:
        return said(lambda: status(StatusConfig(board=self.board)))

    def current(self) -> str:
        return self.virtual.ssh(["readlink", "/opt/anchorvla/current"]).stdout.strip()

    def property(self, name: str) -> str:
        return self.virtual.ssh(["systemctl", "show", "-P", name, "anchorvla"]).stdout.strip()

    def wait_for_ticks(self) -> float:
        """Seconds until the service has done good ticks."""
        begun = time.monotonic()
        while time.monotonic() - begun < WAIT_S:
            ticks = re.search(r"^ticks +(\d+) good", self.status(), re.MULTILINE)
            if ticks and int(ticks[1]) > 0:
                return time.monotonic() - begun
            time.sleep(2)
        raise Broken(f"no good tick within {WAIT_S:g} s: {self.status()}")


def said(do: object) -> str:
    """What it prints; that is printed if it fails, too."""
    stream = StringIO()
    try:
        with redirect_stdout(stream):
            do()  # type: ignore[operator]
    except ExportError:
        print(stream.getvalue(), flush=True)
        raise
    return stream.getvalue()


def acts(scene: Scene) -> Iterator[str]:
    """Each has to hold; yields what there is to tell."""
    scene.sign()
    yield scene.flash()
    yield scene.status()
    again = scene.flash()
    check("runs there already" in again, again)
    yield f"a second flash of it: {again.splitlines()[-1]}"
    scene.sign()
    changed = scene.flash()
    (sent,) = re.findall(r"sent ([\d,]+) bytes of ([\d,]+)", changed)
    check(int(sent[0].replace(",", "")) < 1000, f"the changed one sent {sent[0]} bytes")
    yield f"the same with another number: sent {sent[0]} of {sent[1]} bytes\n{changed}"
    scene.virtual.shutdown()
    booted = scene.virtual.start(cold=True)
    yield f"after a boot of {booted:.0f} s: good ticks after {scene.wait_for_ticks():.0f} s more"
    before = scene.property("NRestarts")
    time.sleep(70)
    check(scene.property("NRestarts") == before, "it was restarted: the watchdog was not fed")
    yield f"70 s without a client, WatchdogSec=30: restarted {before} times"
    scene.virtual.ssh(["kill", "-STOP", scene.property("MainPID")])
    begun = time.monotonic()
    while scene.property("NRestarts") == before:
        check(time.monotonic() - begun < 120, "a process that hangs is left alone")
        time.sleep(1)
    yield f"a process that hangs is replaced after {time.monotonic() - begun:.0f} s"
    scene.wait_for_ticks()
    for words, changes in FAILING.items():
        scene.sign()
        yield f"{words}: {scene.refused(**changes)}"
    scene.spoil_golden()
    scene.sign()
    yield f"golden data that no tick reproduces: {scene.refused()}"
    scene.wait_for_ticks()
    yield said(lambda: rollback(RollbackConfig(board=scene.board)))
    yield scene.status()


FAILING: dict[str, dict[str, object]] = {
    "a budget that no tick keeps": {"budget_ms": 0.001},
    "a service that crashes at its start": {"service": "serve {bundle} --no-such-option"},
    "a service that does too few good ticks": {"health_ticks": 1_000_000, "health_s": 60.0},
}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.virtual_board.flashed")
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--folder", type=Path, default=CACHE)
    options = parser.parse_args()
    if reasons := list(reasons_to_skip()):
        print(f"skipped: {'; '.join(reasons)}")
        return 0
    work = options.folder / "flashed"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    scene, begun = Scene(work, options.folder, options.bundle), time.monotonic()
    try:
        print(f"board: {scene.virtual.start():.1f} s", flush=True)
        install_simulated_tensorrt(scene.virtual)
        for words in acts(scene):
            print(f"[{time.monotonic() - begun:6.0f} s] {words}", flush=True)
    except Broken as error:
        print(f"BROKEN: {error}", flush=True)
        print(scene.virtual.ssh(["journalctl", "-u", "anchorvla", "-n", "30"], check=False).stdout)
        return 1
    finally:
        if scene.virtual.pid is not None:
            scene.virtual.cut()
    return 0


if __name__ == "__main__":
    sys.exit(main())
