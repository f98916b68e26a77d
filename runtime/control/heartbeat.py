"""What a process that drives tells those who watch over it: systemd, and whoever reads a file.

The loop, or the thread that answers clients, calls `beat` after a good tick. No thread of its own
does, so a process that hangs falls silent. To systemd go datagrams: READY=1 with the first good
tick, WATCHDOG=1 with those that follow, STATUS= in one line, STOPPING=1 at the end. The file is
`status.json` in the folder that systemd made for the service.

Nothing here waits, and nothing here stops a robot: what cannot be told is a warning, once.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import json
import math
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..cli.command import one_line
from ..errors import OutputError
from ..storage.files import Kind, beside, check_output

FORMAT = 1
NAME = "status.json"
STATUS = Kind("a status of this project", (b'"format": ', b'"last_tick": ', b'"stopped": '))
PERIOD_S = 1.0
"""Between two files."""
CHECK_S = 5.0
"""Between two self-checks of a policy that nobody asks, where there is no watchdog."""
NUM_KEPT = 512
MOST_WORDS = 500
"""Characters of a reason."""


class Heartbeat:
    """Of one process. Any thread may call it."""

    def __init__(
        self,
        environment: Mapping[str, str],
        *,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], float] = time.time,
    ) -> None:
        """
        Args:
            environment: what counts is NOTIFY_SOCKET, WATCHDOG_USEC, WATCHDOG_PID and
                RUNTIME_DIRECTORY, as systemd sets them.
            clock: seconds that only go forward.
            now: seconds since 1970, for what is written.
        """
        self._clock, self._now = clock, now
        self._lock = threading.Lock()
        self._warned = set[str]()
        folder = environment.get("RUNTIME_DIRECTORY", "").split(":")[0]
        self._file = Path(folder, NAME) if folder else None
        self._address = environment.get("NOTIFY_SOCKET", "")
        self._send = self._sender()
        self.watchdog_s = None if self._send is None else self._watched(environment)
        """Seconds after which systemd ends a process that is silent; None if it does not."""
        self.is_on = self._file is not None or self._send is not None
        """Whether anybody hears of anything; nobody does after the end."""
        self.policy = ""
        self.num_ticks = 0
        """Good ones."""
        self._took_ms: deque[float] = deque(maxlen=NUM_KEPT)
        self._last_tick: float | None = None
        self._stopped: dict[str, Any] | None = None
        """The last stop."""
        self._stands = ""
        """Why, if no good tick has followed."""
        self._started = now()
        self._is_ready = self._is_ours = False
        self._tell_at = self._write_at = -math.inf

    @property
    def check_s(self) -> float | None:
        """Seconds between self-checks of a policy that nobody asks; None where nobody waits for
        any."""
        if self.watchdog_s is not None:
            return self.watchdog_s / 4
        return None if self._file is None else CHECK_S

    def ready(self) -> None:
        """The policy is loaded and warm. The first `beat` says so too."""
        with self._lock:
            self._tell()

    def beat(self, ms: float | None = None) -> None:
        """A tick was good.

        Args:
            ms: what the policy took to answer; None where it was not asked in this tick.
        """
        if not self.is_on:
            return
        with self._lock:
            self.num_ticks += 1
            self._last_tick, self._stands = self._now(), ""
            if ms is not None:
                self._took_ms.append(ms)
            at = self._clock()
            if at >= self._tell_at:
                self._tell(*([] if self.watchdog_s is None else ["WATCHDOG=1"]))
                self._tell_at = at + min(PERIOD_S, (self.watchdog_s or math.inf) / 4)
            if at >= self._write_at or self.num_ticks == 1:
                self._write()

    def stopped(self, why: str) -> None:
        """It does not go on, or not as it was; good ticks may follow."""
        with self._lock:
            if self.is_on and self._note(why):
                self._tell()
                self._write()

    @contextlib.contextmanager
    def watching(self, policy: object = None) -> Iterator[Heartbeat | None]:
        """Whatever ends the block too early is noted as a stop.

        Args:
            policy: whose name is told from now on, if it is one of a bundle.

        Yields:
            This one, or None where nobody hears of it.
        """
        manifest = getattr(getattr(policy, "bundle", None), "manifest", None)
        self.policy = str(getattr(manifest, "policy", self.policy))
        try:
            yield self if self.is_on else None
        except (Exception, KeyboardInterrupt) as error:
            self.stopped(reason(error))
            raise

    def end(self, why: str = "the process ended") -> None:
        """The process ends; nothing is told after that. A stop that no good tick followed stays the
        reason."""
        with self._lock:
            if not self.is_on:
                return
            self.is_on = False
            if not self._stands:
                self._note(why)
            self._tell("STOPPING=1")
            self._write()

    def contents(self) -> dict[str, Any]:
        """As they are written."""
        took_ms = sorted(self._took_ms)
        return {
            "format": FORMAT,
            "pid": os.getpid(),
            "policy": self.policy,
            "started": _rounded(self._started),
            "ticks": self.num_ticks,
            "last_ms": _rounded(self._took_ms[-1]) if took_ms else None,
            "p50_ms": _rounded(_quantile(took_ms, 0.5)),
            "p99_ms": _rounded(_quantile(took_ms, 0.99)),
            "last_tick": _rounded(self._last_tick),
            "stopped": self._stopped,
        }

    def _note(self, why: str) -> bool:
        """Whether that is news."""
        why = " ".join(why.split())[:MOST_WORDS]
        is_news = self._stands != why
        if is_news:
            self._stopped, self._stands = {"at": _rounded(self._now()), "why": why}, why
        return is_news

    def _words(self) -> str:
        """One line of how it does."""
        if self._stands:
            return f"stopped: {self._stands}"
        told = self.contents()
        words = f"{self.policy or 'a policy'}: good ticks {self.num_ticks}"
        if self._took_ms:
            words += ", last answer {last_ms} ms, p50 {p50_ms} ms, p99 {p99_ms} ms".format(**told)
        return words

    def _tell(self, *words: str) -> None:
        """Tell systemd; that it is ready too, as long as it may not have heard of that."""
        if self._send is None:
            return
        is_news = not (self._is_ready or self._stands)
        said = [*(["READY=1"] if is_news else []), *words, f"STATUS={self._words()}"]
        try:
            self._send("\n".join(said).encode(errors="backslashreplace"))
        except BlockingIOError:
            return  # systemd has much to read; a later beat tells
        except OSError as error:
            self._warn("NOTIFY_SOCKET", f"{self._address}: systemd is not told: {error}")
            return
        self._is_ready = self._is_ready or is_news

    def _write(self) -> None:
        if self._file is None:
            return
        self._write_at = self._clock() + PERIOD_S
        try:
            if not self._is_ours:
                check_output(self._file, STATUS)
                self._is_ours = True
            with beside(self._file, synced=False) as partial:
                partial.write_text(json.dumps(self.contents()) + "\n")
        except (OutputError, OSError) as error:
            self._warn("RUNTIME_DIRECTORY", f"{error}; the policy goes on without {NAME}")

    def _sender(self) -> Callable[[bytes], object] | None:
        """What sends a datagram to systemd, and does not wait."""
        if not self._address:
            return None
        if self._address[0] not in "/@":
            self._warn(
                "NOTIFY_SOCKET", f"{self._address} is neither a path nor, behind @, an abstract "
                "name: systemd is not told",
            )  # fmt: skip
            return None
        import socket  # takes longer than all else here, and most processes need none

        channel = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        flags = socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL
        where = self._address if self._address[0] == "/" else f"\0{self._address[1:]}"
        return lambda data: channel.sendto(data, flags, where)

    def _watched(self, environment: Mapping[str, str]) -> float | None:
        """The seconds of a watchdog that means this process."""
        period, process = (environment.get(f"WATCHDOG_{name}", "") for name in ("USEC", "PID"))
        if not period or (process and process != str(os.getpid())):
            return None
        if not (period.isascii() and period.isdigit() and len(period) < 20 and int(period)):
            self._warn(
                "WATCHDOG_USEC", f"microseconds are a whole number above 0, got {period!r}: no "
                "watchdog is fed",
            )  # fmt: skip
            return None
        return int(period) / 1e6

    def _warn(self, name: str, words: str) -> None:
        """Of one variable once, on standard error; a warning of Python could be an error."""
        if name not in self._warned:
            self._warned.add(name)
            with contextlib.suppress(OSError, ValueError):
                print(f"warning: {name}: {words}", file=sys.stderr)


@functools.cache
def of_process() -> Heartbeat:
    """Of this process's environment, the same for all who ask; that it ends is told at its exit."""
    heart = Heartbeat(os.environ)
    atexit.register(heart.end)
    return heart


def reason(error: BaseException) -> str:
    """What to tell of what ended something."""
    if isinstance(error, KeyboardInterrupt):
        return "interrupted"
    return (one_line(error) if isinstance(error, Exception) else "") or type(error).__name__


def _quantile(ordered: Sequence[float], share: float) -> float | None:
    """Between the two values that are nearest, as numpy does; None of nothing."""
    if not ordered:
        return None
    at = share * (len(ordered) - 1)
    low = math.floor(at)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (at - low) * (ordered[high] - ordered[low])


def _rounded(value: float | None) -> float | None:
    """Milliseconds to the microsecond, seconds to the millisecond."""
    return None if value is None else round(value, 3)
