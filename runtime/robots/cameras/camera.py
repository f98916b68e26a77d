"""A camera as its user has it: the newest frame, and a process behind it that is kept alive.

A thread looks after the process. One that has ended is started again, and one that hangs is killed
first; between tries that bring no frame it waits, longer each time, up to `LONGEST_WAIT_S`. So a
camera that is plugged in again is back within seconds, and nobody has to ask for it.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from .ring import Frame, RingReader, shared_memory
from .sources import Source, encode

HANGS_S = 3.0
"""Without a sign of life from a camera that was streaming."""
OPENS_S = 5.0
"""The same from one that is being opened."""
LOADS_S = 30.0
"""The same from a process that loads its modules, which nothing but a busy machine delays."""
LOOKS_S = 0.05
"""Between two looks at the process."""
FIRST_WAIT_S, LONGEST_WAIT_S = 0.25, 2.0
OVER, UNUSABLE = 0, 3
"""Of `process`, which only the camera's process imports."""
COMMAND = (sys.executable, "-m", f"{__package__}.process")
"""What runs a camera; descriptor, parent and source are added."""
_PATH = Path(__file__).parents[len(str(__package__).split("."))]


class Process(Protocol):
    """What is needed of `subprocess.Popen`."""

    def poll(self) -> int | None: ...

    def kill(self) -> None: ...


class Keeper:
    """Keeps one process going; `look` decides, and has to be called now and then.

    Args:
        launch: starts the process.
        alive_at: when it last gave a sign of life, on the clock of `look`.
        newest: how many frames there have been, of all processes so far.
    """

    def __init__(
        self,
        launch: Callable[[], Process],
        alive_at: Callable[[], float],
        newest: Callable[[], int],
    ) -> None:
        self._launch, self._alive_at, self._newest = launch, alive_at, newest
        self._process: Process | None = None
        self._due_at, self._wait_s = 0.0, 0.0
        self._launched_at, self._launched_with = 0.0, 0
        self._is_killed = False
        self.num_launches = self.num_hung = 0
        self.exit_code: int | None = None
        """Of the last process that ended."""

    @property
    def is_final(self) -> bool:
        """Whether no further process will be started."""
        return self._process is None and self.exit_code in (OVER, UNUSABLE)

    def look(self, now: float) -> None:
        """Start what is due, and kill what hangs. Never two at a time."""
        if self._process is None:
            if not self.is_final and now >= self._due_at:
                self._launched_at, self._launched_with = now, self._newest()
                self._is_killed = False
                self.num_launches += 1
                try:
                    self._process = self._launch()
                except OSError:  # no memory for a process, or no more processes
                    self._wait(now, FIRST_WAIT_S)
            return
        if (code := self._process.poll()) is None:
            self._kill_if_hung(now)
            return
        self._process, self.exit_code = None, code
        self._wait(now, 0.0 if self._newest() > self._launched_with else FIRST_WAIT_S)

    def end(self) -> Process | None:
        """Kill the process, if there is one; it may take a moment to be gone."""
        if self._process is not None:
            self._process.kill()
        return self._process

    def _wait(self, now: float, shortest_s: float) -> None:
        """Until the next process: not at all, or twice as long as the last time."""
        self._wait_s = min(max(2 * self._wait_s, shortest_s), LONGEST_WAIT_S) if shortest_s else 0.0
        self._due_at = now + self._wait_s

    def _kill_if_hung(self, now: float) -> None:
        alive_at, process = self._alive_at(), self._process
        if alive_at <= self._launched_at:
            alive_at, patience_s = self._launched_at, LOADS_S
        else:
            patience_s = HANGS_S if self._newest() > self._launched_with else OPENS_S
        if now - alive_at > patience_s and process and not self._is_killed:
            self.num_hung += 1
            self._is_killed = True
            process.kill()


class Camera:
    """One camera, opened in a process of its own, from now until `close`."""

    def __init__(self, source: Source, command: Sequence[str] = COMMAND) -> None:
        """
        Args:
            source: what to open.
            command: what runs it.

        Raises:
            CameraError: this system cannot share memory without a name.
        """
        self.source = source
        self._command = command
        self._descriptor = shared_memory(source.layout)
        self.ring = RingReader(self._descriptor, source.layout)
        self._keeper = Keeper(self._launch, lambda: self.ring.alive_at, lambda: self.ring.newest)
        self._is_closed = threading.Event()
        self._thread = threading.Thread(
            target=self._keep, name=f"camera {source.name}", daemon=True
        )
        self._thread.start()

    @property
    def process_id(self) -> int | None:
        """Of the process that has the camera now."""
        process = self._keeper._process
        return process.pid if isinstance(process, subprocess.Popen) else None

    def latest(self) -> Frame | None:
        """The newest good frame, whatever its age; None if there was none yet."""
        return self.ring.latest()

    @property
    def counts(self) -> Mapping[str, int]:
        """Since it was made: frames, what was wrong with others, and processes."""
        keeper = self._keeper
        again = max(0, keeper.num_launches - 1)
        return {**self.ring.counts, "started again": again, "hung": keeper.num_hung}

    @property
    def problem(self) -> str:
        """Why nothing new may be coming, as far as is known."""
        said = self.ring.noted("words")
        if said:
            return said
        if self._keeper.exit_code is not None:
            return f"{self.source.name}: its process ended ({self._keeper.exit_code}); starting"
        return f"{self.source.name}: is being opened"

    @property
    def warning(self) -> str:
        """What is not as it should be, though it works; empty if nothing."""
        return self.ring.noted("warning")

    @property
    def is_final(self) -> bool:
        """Whether nothing new will ever come: a recording is over, or a library is missing."""
        return self._keeper.is_final

    def close(self) -> None:
        """End the process. Calling it twice is fine."""
        if self._is_closed.is_set():
            return
        self._is_closed.set()
        self._thread.join()
        if isinstance(process := self._keeper.end(), subprocess.Popen):
            with contextlib.suppress(subprocess.TimeoutExpired):  # the kernel holds on to it
                process.wait(HANGS_S)
        os.close(self._descriptor)

    def _keep(self) -> None:
        while not self._is_closed.wait(LOOKS_S):
            self._keeper.look(time.monotonic())

    def _launch(self) -> Process:
        paths = [str(_PATH), os.environ.get("PYTHONPATH", "")]
        return subprocess.Popen(
            [*self._command, str(self._descriptor), str(os.getpid()), encode(self.source)],
            stdin=subprocess.DEVNULL,
            pass_fds=(self._descriptor,),
            # Ctrl-C is for the program, which closes its cameras.
            start_new_session=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))},
        )
