"""python -m tests.virtual_board.power_cuts: the power goes in the middle of a flash.

The virtual board is killed at every border of steps and at random moments of a flash (its upload,
environment, plans, switch, trial, confirmation) and of a rollback. After each it has to boot with
a clean file system and run a whole signed release, old or new, and the same flash, done again, has
to converge. The workstation is killed, its cable pulled and the board's disk filled the same way.

`--without-sync` takes every fsync out of the agent: then it has to fail, or it would show nothing.

The release's own program is a stand-in (tests/flash/runtime_stand_in.py), for a real one takes
minutes under emulation; `make virtual-flash` flashes the real one.
"""

from __future__ import annotations

import argparse
import multiprocessing
import random
import shutil
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from device_tests.errors import RemoteError
from device_tests.remote import Remote
from export.errors import ExportError
from export.release import archive
from export.release.agent.lock import LOST_S
from export.release.board import Board
from export.release.config import KeysConfig, ReleaseConfig, SignConfig
from export.release.flash import STEPS, Prepared, Step, flash_board, settled, who
from export.release.signing import make_keys, sign
from tests.families import list_again
from tests.flash.board import stand_in_wheelhouse
from tests.runtime.test_declarations import family
from tests.runtime.test_refused_manifests import INPUTS
from tests.virtual_board.board import VirtualBoard, make_booted
from tests.virtual_board.image import make_image

FLASHED = "flashed"
WITHOUT_SYNC = "import os\nos.fsync = os.sync = lambda *_: None\n"
CHECK = """
import hashlib, json, os, pathlib, sys
root = pathlib.Path("/opt/anchorvla")
current = pathlib.Path(os.path.realpath(root / "current"))
described = json.loads((current / "release.json").read_bytes())
for name, entry in described["files"].items():
    data = (current / name).read_bytes()
    if hashlib.sha256(data).hexdigest() != entry["sha256"]:
        sys.exit(f"{current.name}: {name} is not what it was: {len(data)} bytes")
if not (current / "proven.json").read_bytes():
    sys.exit(f"{current.name}: proven.json is empty")
for engine in (current / "bundle/engines").glob("*.onnx"):
    folder = current / "bundle/plans/board"
    plan, record = (folder / f"{engine.stem}{suffix}" for suffix in (".plan", ".json"))
    if record.read_text() != hashlib.sha256(plan.read_bytes()).hexdigest():
        sys.exit(f"{current.name}: the plan of {engine.stem} is not what it was")
print(current.name)
"""
TENSORRT = "/usr/lib/python3/dist-packages/tensorrt.py"
STARTED_S = 240.0
EVERY = 2
"""Releases, of which one has other packages than the one before."""
ROLLBACKS = 0.15
"""Of the random cuts, those in the middle of a rollback."""
ENGINES = ("engines/mean3.onnx", "engines/sum.onnx")
"""That change. Nobody reads them: the program of the release is a stand-in."""
ENGINE_BYTES = 500_000


class Broken(Exception):
    """What was promised did not hold."""


class Trials:
    """The board, what is flashed to it, and what was seen."""

    def __init__(self, folder: Path, cache: Path, *, sync: bool) -> None:
        image = make_image(cache)
        self.virtual = VirtualBoard(folder / "board", image, booted=make_booted(image, cache))
        self.folder, self.sync, self.number = folder, sync, 0
        self.seen: Counter[str] = Counter()
        self.longest_boot_s = 0.0
        self.bundle = family(folder / "bundle", INPUTS)
        make_keys(KeysConfig(out=folder / "keys"))

    @contextmanager
    def reached(self):
        options = [
            f"UserKnownHostsFile={self.virtual.folder / 'known_hosts'}",
            "GlobalKnownHostsFile=none",
            f"IdentityFile={self.virtual.image.key.resolve()}",
            "IdentitiesOnly=yes",
            "ServerAliveInterval=2",
            "ServerAliveCountMax=3",
        ]
        remote = Remote.parse(f"root@127.0.0.1:{self.virtual.port}", options=options)
        with Board.reached(remote, root="/opt/anchorvla") as board:
            yield board

    def prepare(self) -> Prepared:
        """The next release: two new engines of four, and one in `EVERY` has other packages.

        An environment takes as long as all the rest, and few cuts would fall elsewhere.
        """
        packages, self.number = self.number // EVERY, self.number + 1
        wheels = self.folder / f"wheels-{packages}"
        if not wheels.exists():
            stand_in_wheelhouse(wheels, f"packages-{packages}", "slow")
        for name in ENGINES:
            (self.bundle / name).write_bytes(random.randbytes(ENGINE_BYTES))
            list_again(self.bundle, name)
        key = self.folder / "keys/release.key"
        sign(SignConfig(bundle=self.bundle, key=key, number=self.number))
        return Prepared(
            ReleaseConfig(
                bundle=self.bundle,
                wheelhouse=wheels,
                trust=self.folder / "keys/release.pub",
                backend="tensorrt",
                service="serve {bundle}",
                health_s=200.0,
            )
        )

    def flash(self, prepared: Prepared, at: Callable[[str], None] = lambda step: None) -> None:
        """To its end; `at` is told each step that is done."""
        with self.reached() as board:
            flash_board(board, prepared, say=lambda name, words: at(name) if name else None)

    def rollback(self) -> None:
        with self.reached() as board:
            token = board.ask("lock", f"--who={who()}")
            target = board.ask("rollback", token=token)
            settled(board, target, token)
            board.ask("unlock", token=token)

    def current(self) -> str:
        """The release that is whole there.

        Raises:
            Broken: none is.
        """
        done = self.virtual.ssh(["python3", "-I", "-c", CHECK], check=False)
        if done.returncode:
            raise Broken(done.stderr.strip() or done.stdout.strip())
        return done.stdout.strip()

    def check_after_boot(self, allowed: Sequence[str]) -> str:
        """What holds after every cut."""
        if words := self.virtual.fsck():
            raise Broken(f"the file system: {words}")
        self.longest_boot_s = max(self.longest_boot_s, self.virtual.start(cold=True))
        now = self.current()
        if not any(now.startswith(name) for name in allowed):
            raise Broken(f"{now} is current, allowed are {', '.join(allowed)}")
        self.wait_until_it_runs()
        return now

    def wait_until_it_runs(self) -> None:
        """The service says that it is ready."""
        end = time.monotonic() + STARTED_S
        state = ""
        while time.monotonic() < end:
            asked = self.virtual.ssh(["systemctl", "is-active", "anchorvla"], check=False)
            state = asked.stdout.strip()
            if state == "active":
                return
            time.sleep(1)
        journal = self.virtual.ssh(["journalctl", "-u", "anchorvla", "-n", "20"], check=False)
        raise Broken(f"the service is {state!r} after {STARTED_S:g} s: {journal.stdout}")


@dataclass(frozen=True, slots=True)
class Moment:
    """Of a cut: so long behind the end of a step. Seconds from the begin would miss most of a flash
    where the host is busier or idler than when one was timed."""

    behind: str
    seconds: float = 0.0

    def __str__(self) -> str:
        return f"{self.seconds:.1f} s behind {self.behind}" if self.seconds else self.behind


BEGIN = "begin"


def cut_at(trials: Trials, action: Callable[[Callable[[str], None]], None], moment: Moment) -> str:
    """Do `action`, and take the power away.

    Returns:
        The last step that was done.
    """
    reached: list[str] = []
    timer = threading.Timer(moment.seconds, trials.virtual.cut)

    def at(name: str) -> None:
        reached.append(name)
        if name == moment.behind and not moment.seconds:
            trials.virtual.cut()
        elif name == moment.behind and not timer.ident:
            timer.start()

    try:
        with suppress(ExportError, RemoteError, ValueError, IndexError):
            at(BEGIN)
            action(at)
    finally:
        timer.cancel()
        if timer.ident:
            timer.join()
    if trials.virtual.pid is not None:
        trials.virtual.cut()
        reached.append("end")
    return reached[-1]


def random_moment(took: Sequence[tuple[str, float]], rng: random.Random) -> Moment:
    """Any time of a flash is as likely.

    Args:
        took: steps of an undisturbed one, and the seconds of each.
    """
    at_s = rng.uniform(0, sum(seconds for _, seconds in took))
    behind = BEGIN
    for name, seconds in took:
        if at_s < seconds:
            break
        behind, at_s = name, at_s - seconds
    return Moment(behind, at_s)


def kill_workstation(trials: Trials, prepared: Prepared, moment_s: float) -> None:
    """The process that flashes is killed; the board goes on."""
    child = multiprocessing.get_context("fork").Process(target=trials.flash, args=(prepared,))
    child.start()
    child.join(moment_s)
    child.kill()
    child.join()


def pull_cable(trials: Trials, prepared: Prepared, moment_s: float) -> None:
    """Connections stay, and hear nothing, until somebody gives up; then it is plugged in again."""
    timer = threading.Timer(moment_s, trials.virtual.set_link, kwargs={"up": False})
    timer.start()
    with suppress(ExportError, RemoteError, ValueError, IndexError):
        trials.flash(prepared)
    timer.cancel()
    timer.join()
    trials.virtual.set_link(up=True)


def fill_disk(trials: Trials, prepared: Prepared, moment_s: float) -> None:
    """Nothing is free from that moment on; then there is room again."""
    fill = ["sh", "-c", "cat /dev/zero > /opt/anchorvla/filler 2> /dev/null; sync; true"]
    timer = threading.Timer(moment_s, trials.virtual.ssh, args=(fill,), kwargs={"check": False})
    timer.start()
    with suppress(ExportError, RemoteError, ValueError, IndexError):
        trials.flash(prepared)
    timer.cancel()
    timer.join()
    trials.virtual.ssh(["rm", "-f", "/opt/anchorvla/filler"])


OTHERS = {"workstation killed": kill_workstation, "cable": pull_cable, "disk full": fill_disk}


def run_others(trials: Trials, num: int, took_s: float, rng: random.Random) -> int:
    """Without a cut of the power: what is current stays whole, and the next flash converges."""
    broken = 0
    for number in range(num):
        what = list(OTHERS)[number % len(OTHERS)]
        old, _ = names(trials)
        prepared, moment_s = trials.prepare(), rng.uniform(0, took_s)
        OTHERS[what](trials, prepared, moment_s)
        try:
            now = trials.current()
            if not now.startswith((old, f"{trials.number}-")):
                raise Broken(f"{now} is current")
            time.sleep(LOST_S)  # the flash that is gone holds the board until then
            trials.flash(prepared)
            if not trials.current().startswith(f"{trials.number}-"):
                raise Broken(f"the next flash ended with {trials.current()}")
            words = f"ran {'the old' if now == old else 'the new'} one; the next flash converged"
        except (Broken, ExportError, RemoteError) as error:
            broken += 1
            words = f"BROKEN: {error}"
        trials.seen[what] += 1
        print(f"{number + 1:4} {what} after {moment_s:.1f} s: {words}", flush=True)
    return broken


def names(trials: Trials) -> tuple[str, str | None]:
    """Current and previous release."""
    with trials.reached() as board, board.visiting() as ask:
        report = ask("status")
    return report["current"], report["previous"]


def timed(trials: Trials) -> list[tuple[str, float]]:
    """An undisturbed flash: its steps, and the seconds of each."""
    took, last, prepared = [], time.monotonic(), trials.prepare()

    def at(name: str) -> None:
        nonlocal last
        now = time.monotonic()
        took.append((name, now - last))
        last = now

    trials.flash(prepared, at)
    return took


def run(trials: Trials, steps: Sequence[Step], num_random: int, num_others: int, seed: int) -> int:
    """All cuts; the number of those after which a promise was broken."""
    print(f"board: {trials.virtual.start():.1f} s", flush=True)
    trials.virtual.ssh(["tee", TENSORRT], stdin="# looked for, and not used by the stand-in\n")
    timed(trials)  # the first makes pip, which later ones take over
    for words in ("with the same packages", "with others"):
        took = timed(trials)
        listed = ", ".join(f"{name} {seconds:.1f}" for name, seconds in took)
        print(f"an undisturbed flash {words}, in seconds: {listed}; seed {seed}", flush=True)
    took_s = sum(seconds for _, seconds in took)
    rng = random.Random(seed)
    moments = [("flash", Moment(step.name)) for step in steps]
    for _ in range(num_random):
        if rng.random() < ROLLBACKS:
            moments.append(("rollback", Moment(BEGIN, rng.uniform(0, took_s / 4))))
        else:
            moments.append(("flash", random_moment(took, rng)))
    broken = 0
    for number, (kind, moment) in enumerate(moments, 1):
        old, before = names(trials)
        if kind == "rollback" and before is None:
            kind = "flash"
        prepared = trials.prepare()
        action = (
            (lambda at: trials.rollback())
            if kind == "rollback"
            else (lambda at, prepared=prepared: trials.flash(prepared, at))
        )
        where = cut_at(trials, action, moment)
        new = before if kind == "rollback" else f"{trials.number}-"
        try:
            now = trials.check_after_boot([old, str(new)])
            trials.flash(prepared)
            after = trials.current()
            if not after.startswith(f"{trials.number}-"):
                raise Broken(f"the next flash ended with {after}")
            words = f"ran {'the old' if now == old else 'the new'} one; the next flash converged"
        except (Broken, ExportError, RemoteError) as error:
            broken += 1
            words = f"BROKEN: {error}"
            trials.seen["broken"] += 1
        trials.seen[f"{kind}, behind {where}"] += 1
        print(f"{number:4} {kind} cut at {moment} ({where}): {words}", flush=True)
        if broken and not trials.sync:
            return broken
    return broken + run_others(trials, num_others, took_s, rng)


def main() -> int:
    """0 if all held; with `--without-sync`, if something did not."""
    parser = argparse.ArgumentParser(prog="python -m tests.virtual_board.power_cuts")
    parser.add_argument("--random", type=int, default=100, help="cuts at random moments")
    parser.add_argument("--no-borders", action="store_true", help="none at borders of steps")
    parser.add_argument("--others", type=int, default=30, help="of the other ways to break off")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--without-sync", action="store_true", help="no fsync: it has to fail")
    parser.add_argument("--folder", type=Path, default=Path("build/virtual-board"))
    options = parser.parse_args()
    if options.without_sync:
        archive.MAIN = WITHOUT_SYNC + archive.MAIN
    work = options.folder / "power-cuts"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    trials = Trials(work, options.folder, sync=not options.without_sync)
    steps = () if options.no_borders else STEPS
    try:
        broken = run(trials, steps, options.random, options.others, options.seed)
    finally:
        if trials.virtual.pid is not None:
            trials.virtual.cut()
    for what, count in sorted(trials.seen.items()):
        print(f"{count:4} {what}")
    print(f"{broken} broken; the longest boot {trials.longest_boot_s:.1f} s")
    return int(bool(broken) != options.without_sync)


if __name__ == "__main__":
    sys.exit(main())
