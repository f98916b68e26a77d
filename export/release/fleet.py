"""The same release on many boards: one first, and the others when that one has confirmed it.

For more than a room full of boards: the Ansible role in `export/release/ansible`, which flashes
each of them by the same steps.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from device_tests.errors import RemoteError
from export.errors import ExportError
from export.release.config import FleetConfig
from export.release.flash import Prepared, flash_board, reached, tell

WIDTH = 28


@dataclass(frozen=True, slots=True)
class Outcome:
    """Of one board."""

    host: str
    words: str
    """What became of it: `confirmed`, `not begun`, or the error."""
    failed: bool = False
    sent_bytes: int = 0
    seconds: float = 0.0


def fleet(config: FleetConfig) -> None:
    """Flash the boards of a file; print a table.

    Raises:
        BundleError: the bundle is damaged.
        ExportError: it is not signed, the file names no board, or a board failed.
    """
    hosts, prepared = read_hosts(config.hosts), Prepared(config.release)
    lock = threading.Lock()

    def one(host: str) -> Outcome:
        begun = time.monotonic()

        def say(name: str, words: str) -> None:
            if name:
                with lock:
                    tell(name, f"{host}: {words}")

        try:
            with reached(config.board, host) as board:
                sent = flash_board(board, prepared, say=say)
        except (ExportError, RemoteError) as error:
            return Outcome(host, str(error), failed=True, seconds=time.monotonic() - begun)
        return Outcome(host, "confirmed", sent_bytes=sent, seconds=time.monotonic() - begun)

    outcomes = roll_out(hosts, one, config.parallel, config.most_failures)
    print("\n".join(table(outcomes)))
    failed = [outcome for outcome in outcomes if outcome.failed]
    if failed:
        raise ExportError(
            f"{len(failed)} of {len(hosts)} boards failed, "
            f"{sum(outcome.words == 'not begun' for outcome in outcomes)} were not begun; each "
            "board runs what it ran before. Flash again when that is mended: what is done is done"
        )


def roll_out(
    hosts: Sequence[str], one: Callable[[str], Outcome], parallel: int, most_failures: int
) -> list[Outcome]:
    """The first alone; the others, so many at a time, until too many have failed.

    Args:
        one: flashes a board; called by several threads.

    Returns:
        Of every board, in the order of `hosts`.
    """
    canary = one(hosts[0])
    if canary.failed:
        return [canary, *(Outcome(host, "not begun") for host in hosts[1:])]
    failures, lock = 0, threading.Lock()

    def next_one(host: str) -> Outcome:
        nonlocal failures
        with lock:
            if failures >= most_failures:
                return Outcome(host, "not begun")
        outcome = one(host)
        with lock:
            failures += outcome.failed
        return outcome

    with ThreadPoolExecutor(parallel) as pool:
        return [canary, *pool.map(next_one, hosts[1:])]


def read_hosts(path: Path) -> list[str]:
    """One board a line, the first is the one that tries; what follows # is for people.

    Raises:
        ExportError: it cannot be read, names no board, or one twice.
    """
    try:
        lines = path.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ExportError(f"{path}: cannot be read ({error})") from None
    hosts = [words for line in lines if (words := line.split("#")[0].strip())]
    twice = {host for host in hosts if hosts.count(host) > 1}
    if not hosts or twice:
        what = f"names {', '.join(sorted(twice))} twice" if twice else "names no board"
        raise ExportError(f"{path}: {what}; one user@host a line, the one to try first")
    return hosts


def table(outcomes: Sequence[Outcome]) -> list[str]:
    """For people."""
    head = f"{'board':<{WIDTH}} {'sent, bytes':>14} {'seconds':>8}  outcome"
    return [head] + [
        f"{o.host:<{WIDTH}} {o.sent_bytes:>14,} {o.seconds:>8.1f}  {o.words}" for o in outcomes
    ]
