"""A release on a board: eleven steps, each of which can be repeated, and what follows them.

preflight, lock, upload, unpack, environment, doctor, build, prove, switch, settle, clean. Up to
`switch` the board runs what it ran before. From there on the board goes on by itself: it confirms
the release when its service is healthy, or returns. Whatever is cut off, and wherever, the next
flash goes on from there.
"""

from __future__ import annotations

import contextlib
import getpass
import os
import shlex
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from device_tests.errors import RemoteError
from device_tests.remote import Remote
from export.errors import ExportError
from export.release.agent.place import BUNDLE, WHEELS
from export.release.agent.transfer import send
from export.release.board import Board, StepFailed
from export.release.config import AnyBoardConfig, FlashConfig, ReleaseConfig, RollbackConfig
from export.release.release import Release, Service, make_release, read_signed
from export.release.targets import Target, target_of
from export.release.wheelhouse import assemble
from runtime.cli.progress import Progress
from runtime.storage.signature import SHOWN
from runtime.storage.trust import read_key

DOCTOR = {
    0: "nothing to complain of",
    1: "warnings, see above",
    2: "errors, see above; it is tried all the same",
}
"""By its exit code."""
HOUSES = Path("build/wheelhouses")
POLL_S = 1.0
UNHEARD_S = 180.0
"""Without an answer of a board that settles, after which it is given up: it may boot meanwhile.
Not a number of polls: one takes a moment where nobody listens, ten seconds where a cable is out."""
PATIENCE_S = 120.0
"""Beyond the time in which a release has to be healthy."""
CLOCK_S = 30.0
"""That a board's clock may be off before it is told."""
ENVIRONMENT_FACTOR = 4
"""Times the wheels' bytes that an environment takes: unpacked, and compiled by Python."""
GB = 1e9
Say = Callable[[str, str], None]


@dataclass(slots=True)
class Flash:
    """One flash of one board."""

    board: Board
    release: Release
    config: ReleaseConfig
    say: Say
    token: str = ""
    sent_bytes: int = 0

    def ask(self, verb: str, *words: str, data: Any = b"") -> Any:
        """The board's agent, about this release."""
        return self.board.ask(
            verb, *words, token=self.token, data=data, say=lambda line: self.say("", line)
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """One of a flash."""

    name: str
    words: str
    """What it does."""
    undo: str
    """What becomes of it when it fails."""
    done: Callable[[Mapping[str, Any]], bool]
    """Was it, by what the agent's `progress` says?"""
    do: Callable[[Flash], str]
    """Returns what there is to tell."""


def _upload(flash: Flash) -> str:
    wanted = flash.ask("missing", data=flash.release.to_json())
    total = sum(entry["size"] - entry["offset"] for entry in wanted)
    files = [(entry, flash.release.sources[entry["sha256"]]) for entry in wanted]
    lines = Progress(sys.stderr)
    lines.step(f"{len(files)} files, {total / 1e6:.1f} MB")

    def write(stream: IO[bytes]) -> None:
        flash.sent_bytes += send(iter(files), stream)

    if files:
        flash.ask("receive", data=write)
    lines.close()
    there = flash.release.num_bytes - total
    return f"sent {total:,} bytes of {flash.release.num_bytes:,}; {there:,} were there"


def _unpack(flash: Flash) -> str:
    name = flash.release.name
    flash.ask("unpack", name, data=flash.release.to_json())
    return f"releases/{name}"


def _environment(flash: Flash) -> str:
    flash.ask("environment", flash.release.name)
    return "packages of the release, TensorRT of the system"


def _doctor(flash: Flash) -> str:
    """It only tells: whether the release runs there is what the next steps find out."""
    return DOCTOR[flash.ask("doctor", flash.release.name)]


def _build(flash: Flash) -> str:
    return "plans are there" if flash.ask("build", flash.release.name) else "nothing to build"


def _prove(flash: Flash) -> str:
    found = flash.ask("prove", flash.release.name)
    budget = flash.release.description["budget_ms"]
    judged = "no budget was given" if budget is None else f"of {budget:g} ms"
    return (
        f"parity with the golden data; a warm tick takes {found['warm_p50_ms']:.2f} ms, p99 "
        f"{found['warm_p99_ms']:.2f} ms, {judged}"
    )


def _switch(flash: Flash) -> str:
    words = ["--allow-downgrade"] if flash.config.allow_downgrade else []
    flash.ask("switch", flash.release.name, *words)
    return f"current is {flash.release.name}, on trial"


def _settle(flash: Flash) -> str:
    return settled(flash.board, flash.release.name, flash.token)


def _clean(flash: Flash) -> str:
    removed = flash.ask("clean")
    return f"removed {', '.join(removed)}" if removed else "nothing to remove"


STEPS = (
    Step(
        name="upload",
        words="send the files that are not there",
        undo="what arrived stays, and is not sent again",
        done=lambda p: p["unpacked"] or p["missing_bytes"] == 0,
        do=_upload,
    ),
    Step(
        name="unpack",
        words="put them in their places, under the release's name when all are there",
        undo="nothing has the release's name",
        done=lambda p: p["unpacked"],
        do=_unpack,
    ),
    Step(
        name="environment",
        words="install the release's packages in an environment of its own",
        undo="what was installed is removed",
        done=lambda p: p["environment"],
        do=_environment,
    ),
    Step(
        name="doctor",
        words="look for what may keep the board from running it, and tell",
        undo="nothing to undo",
        done=lambda p: p["proven"],
        do=_doctor,
    ),
    Step(
        name="build",
        words="build the plans that no other release has, largest first",
        undo="plans that are whole stay",
        done=lambda p: p["proven"],
        do=_build,
    ),
    Step(
        name="prove",
        words="check the signature, compare with the golden data, time a tick",
        undo="the release is not proven, so nothing switches to it",
        done=lambda p: p["proven"],
        do=_prove,
    ),
    Step(
        name="switch",
        words="make it current, on trial, and restart the service",
        undo="the release before is current",
        done=lambda p: p["current"],
        do=_switch,
    ),
    Step(
        name="settle",
        words="wait until the board confirms it, or returns to the release before",
        undo="the board returns to the release before by itself",
        done=lambda p: p["current"] and not p["trial"],
        do=_settle,
    ),
    Step(
        name="clean",
        words="remove what nothing leads to, but for the release before",
        undo="nothing to undo",
        done=lambda p: False,
        do=_clean,
    ),
)
"""Behind preflight and lock."""


def flash(config: FlashConfig) -> None:
    """Bring a release to a board.

    Raises:
        BundleError: the bundle is damaged.
        ExportError: it is not signed, or the board refused a step; the message says which.
        RemoteError: the board is not reached.
    """
    prepared = Prepared(config.release)
    with reached(config.board, config.board.host) as board:
        flash_board(board, prepared, dry_run=config.dry_run)


class Prepared:
    """What is verified once and goes to any number of boards."""

    def __init__(self, config: ReleaseConfig) -> None:
        """
        Raises:
            BundleError: the bundle is damaged.
            ExportError: it is not signed.
        """
        self.config = config
        self.bundle, self.signature = read_signed(config.bundle)
        self._assembled: dict[Target, Path] = {}
        self._assembling = threading.Lock()

    def release_for(self, facts: Mapping[str, Any]) -> Release:
        """For a board of these facts."""
        config = self.config
        return make_release(
            self.bundle,
            self.signature,
            wheels=config.wheelhouse or self._wheels(facts),
            python=facts["python"],
            backend=config.backend,
            service=_service(config),
        )

    def _wheels(self, facts: Mapping[str, Any]) -> Path:
        """Of the board's own machine and Python; those of another board of the kind are kept.

        Raises:
            ExportError: there are none for such a board, or one is not to be had.
        """
        try:
            target = target_of(facts["machine"], tuple(facts["python"]), facts["glibc"])
        except ValueError as error:
            raise ExportError(f"no packages for this board: {error}") from None
        with self._assembling:
            if target not in self._assembled:
                kinds = (self.config.backend, *self.config.kinds)
                out = HOUSES / f"{target.slug}-{'-'.join(kinds)}"
                self._assembled[target] = assemble(target, kinds, out).folder
            return self._assembled[target]

    def __str__(self) -> str:
        key, license = self.signature.key[:SHOWN], self.bundle.manifest.license
        return f"signed by {key}; licence of the weights: {license}"


def flash_board(
    board: Board, prepared: Prepared, *, dry_run: bool = False, say: Say | None = None
) -> int:
    """`flash`, of a board that is reached.

    Args:
        say: told each step's name and what there is to tell; a name is empty for its details.

    Returns:
        Bytes that were sent.
    """
    say, config = say or tell, prepared.config
    with board.visiting() as ask:
        facts = ask("facts")
        release = prepared.release_for(facts)
        say("release", f"{release.name}, {release.num_bytes / GB:.2f} GB, {prepared}")
        done = ask("progress", release.name, data=release.to_json())
        say("preflight", preflight(facts, release, done, config, board.address))
        if dry_run:
            for step in STEPS:
                state = "done" if step.done(done) else "to do"
                say(step.name, f"{state}: {step.words}; if it fails, {step.undo}")
            return 0
        if done["current"] and not done["trial"]:
            say("done", f"{release.name} runs there already")
            return 0
        token = ask("lock", f"--who={who()}")
        ask("adopt", token=token)
    run = Flash(board, release, config, say, token)
    try:
        _trust(run, facts)
        for step in STEPS:
            begun = time.monotonic()
            words = step.do(run)
            say(step.name, f"{words} ({time.monotonic() - begun:.1f} s)")
    finally:
        with contextlib.suppress(RemoteError, StepFailed):
            board.ask("unlock", token=token)
    return run.sent_bytes


def preflight(
    facts: Mapping[str, Any],
    release: Release,
    done: Mapping[str, Any],
    config: ReleaseConfig,
    address: str,
) -> str:
    """May this release go there?

    Returns:
        What was found.

    Raises:
        ExportError: it may not, and why.
    """
    needed = done["missing_bytes"]
    if not done["environment"]:
        needed += ENVIRONMENT_FACTOR * release.bytes_in(WHEELS)
    if config.backend == "tensorrt" and not done["proven"]:
        needed += release.bytes_in(f"{BUNDLE}/engines")
    off_s = facts["time"] - time.time()
    version = ".".join(map(str, facts["python"]))
    system = f"Jetson Linux {facts['l4t']}, " if facts["l4t"] else ""
    problems = [
        (not facts["has_systemd"], "has no systemd, which runs releases"),
        (tuple(facts["python"]) < (3, 10), f"has Python {version}; 3.10 or newer is needed"),
        (not facts["has_venv"], "makes no virtual environments: sudo apt install python3-venv"),
        (
            config.backend == "tensorrt" and not facts["has_tensorrt"],
            "has no TensorRT that its Python finds: sudo apt install python3-libnvinfer, or flash "
            "with --backend onnxruntime",
        ),
        (
            not facts["trusts"] and config.trust is None,
            "trusts no key yet: name the first one with --trust keys/release.pub",
        ),
        (
            needed * 1.1 > facts["free_bytes"],
            f"has {facts['free_bytes'] / GB:.2f} GB free, {needed * 1.1 / GB:.2f} GB are needed: "
            "free some",
        ),
    ]
    found = [words for is_so, words in problems if is_so]
    if found:
        raise ExportError(f"{address} {'; and it '.join(found)}")
    clock = f"clock {off_s:+.1f} s"
    if abs(off_s) > CLOCK_S:
        clock += ": WARNING, recordings will have wrong times; look at timedatectl there"
    return (
        f"{facts['board']}, {system}Python {version}; {facts['free_bytes'] / GB:.1f} GB free of "
        f"{needed * 1.1 / GB:.2f} needed; {clock}; current {facts['current'] or 'none'}"
    )


def rollback(config: RollbackConfig) -> None:
    """Return a board to the release before.

    Raises:
        ExportError: there is none, or it did not become healthy, and the board returned.
        RemoteError: the board is not reached.
    """
    with reached(config.board, config.board.host) as board:
        token = board.ask("lock", f"--who={who()}")
        try:
            target = board.ask("rollback", token=token)
            tell("rollback", f"current is {target}")
            tell("settle", settled(board, target, token))
        finally:
            with contextlib.suppress(RemoteError, StepFailed):
                board.ask("unlock", token=token)


def settled(board: Board, release: str, token: str) -> str:
    """Look on while the board settles a trial, and hold the board meanwhile.

    Raises:
        ExportError: the board returned to the release before, or does not settle.
        RemoteError: the board was not reached for a long time.
    """
    begun = heard = time.monotonic()
    while True:
        try:
            report = board.ask("status", token=token)
        except RemoteError:
            if time.monotonic() - heard > UNHEARD_S:
                raise
            time.sleep(POLL_S)
            continue
        heard = time.monotonic()
        if report["trial"] is None:
            return _verdict(report, release, board.address)
        if time.monotonic() - begun > report["within_s"] + PATIENCE_S:
            raise StepFailed(
                f"{board.address}: {release} is on trial for longer than {report['within_s']:g} s; "
                "look there with: journalctl -u anchorvla-settle"
            )
        time.sleep(POLL_S)


def _verdict(report: Mapping[str, Any], release: str, address: str) -> str:
    if report["current"] == release:
        return f"confirmed after {(report['status'] or {}).get('ticks', 0)} good ticks"
    returns = [e for e in report["events"] if e["what"] == "returned" and e["release"] == release]
    why = returns[-1]["why"] if returns else "the switch was cut off"
    raise StepFailed(
        f"{address}: {release} was not confirmed: {why}; the board runs "
        f"{report['current'] or 'nothing'}. Look there with: journalctl -u anchorvla"
    )


@contextlib.contextmanager
def reached(config: AnyBoardConfig, host: str) -> Iterator[Board]:
    """The board of a host.

    Raises:
        ValueError: it is no user@host.
        RemoteError: it is not reached.
    """
    remote = Remote.parse(host, python=config.python, options=config.ssh_option)
    with Board.reached(remote, root=config.root, system=config.system) as board:
        yield board


def tell(name: str, words: str) -> None:
    """A step on standard output, its details on standard error."""
    if name:
        print(f"{name:<12} {words}", flush=True)
    else:
        print(f"{'':<12} {words}", file=sys.stderr, flush=True)


def who() -> str:
    """For somebody else who flashes the same board."""
    return f"{getpass.getuser()} on {socket.gethostname()}, process {os.getpid()}"


def _trust(run: Flash, facts: Mapping[str, Any]) -> None:
    path: Path | None = run.config.trust
    if facts["trusts"] or path is None:
        return
    key = read_key(path)
    run.ask("trust", f"--name={key.name[:SHOWN]}.pub", data=path.read_bytes())
    run.say("trust", f"the board runs what {key} signed, and nothing else from now on")


def _service(config: ReleaseConfig) -> Service:
    words = config.service or f"serve {{bundle}} --backend {config.backend}"
    return Service(
        words=shlex.split(words),
        budget_ms=config.budget_ms,
        ticks=config.health_ticks,
        within_s=config.health_s,
        most_starts=config.most_starts,
    )
