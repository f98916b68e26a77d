"""The thread that computes, so that nothing that listens ever waits for a policy.

It opens the policy, does one job after the other, and closes it. A job that never ends cannot be
ended from outside; then `busy_s` grows, and the process may leave all the same, since the thread is
a daemon.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import AbstractContextManager, suppress
from typing import Any, Generic, TypeVar

Owned = TypeVar("Owned")


class Worker(Generic[Owned]):
    """Does jobs with what it owns.

    Args:
        own: opened and closed in the thread.
        clock: tells how long a job has taken.
        idle: called with what it owns while no job waits. Returns the seconds until it is called
            again, unless a job comes first; None for after the next job.
    """

    def __init__(
        self,
        own: Callable[[], AbstractContextManager[Owned]],
        clock: Callable[[], float] = time.monotonic,
        idle: Callable[[Owned], float | None] = lambda owned: None,
    ) -> None:
        self.opened: Future[Owned] = Future()
        """What it owns, or why that could not be opened."""
        self._own, self._clock, self._idle = own, clock, idle
        self._jobs: queue.SimpleQueue[tuple[Callable[[Owned], Any], Future[Any]] | None]
        self._jobs = queue.SimpleQueue()
        self._busy_since: float | None = None
        self._thread = threading.Thread(target=self._work, name="policy", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def submit(self, job: Callable[[Owned], Any]) -> Future[Any]:
        """Do `job` with what it owns, after the jobs before it."""
        future: Future[Any] = Future()
        self._jobs.put((job, future))
        return future

    @property
    def busy_s(self) -> float:
        """How long the present job, or what is done meanwhile, has taken; 0 if there is none."""
        since = self._busy_since
        return 0.0 if since is None else self._clock() - since

    def stop(self, timeout_s: float) -> bool:
        """Close what it owns after the present job; whether that came to an end in time."""
        self._jobs.put(None)
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _work(self) -> None:
        try:
            with self._own() as owned:
                self.opened.set_result(owned)
                while (next_one := self._next(owned)) is not None:
                    self._do(*next_one, owned)
        except BaseException as error:
            if self.opened.done():
                raise
            self.opened.set_exception(error)

    def _next(self, owned: Owned) -> tuple[Callable[[Owned], Any], Future[Any]] | None:
        """The next job. What is done while none waits is over by then, and a job is never behind
        more than one such thing."""
        while self._jobs.empty():
            self._busy_since = self._clock()
            try:
                wait_s = self._idle(owned)
            finally:
                self._busy_since = None
            with suppress(queue.Empty):
                return self._jobs.get(timeout=wait_s)
        return self._jobs.get()

    def _do(self, job: Callable[[Owned], Any], future: Future[Any], owned: Owned) -> None:
        if not future.set_running_or_notify_cancel():
            return
        self._busy_since = self._clock()
        try:
            result = job(owned)
        except BaseException as error:
            self._busy_since = None
            future.set_exception(error)
        else:
            self._busy_since = None
            future.set_result(result)
