"""Other work on the machine, as processes that end with the block that wants them.

A process whose parent is killed ends on its own: each looks whether it still has the same parent.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

READY = "ready"
# Loops that look up now and then whether whoever started them is still there.
BUSY = f"""
import os
parent = os.getppid()
print({READY!r}, flush=True)
while os.getppid() == parent:
    for _ in range(1_000_000):
        pass
"""
TOUCHING = f"""
import os, sys
import numpy as np
parent, pages = os.getppid(), np.zeros(int(sys.argv[1]), np.uint8)
pages[::4096] += 1
print({READY!r}, flush=True)
while os.getppid() == parent:
    pages[::4096] += 1
"""


@contextmanager
def cpu_pressure(num_processes: int) -> Iterator[None]:
    """Keep so many cores busy."""
    with _running([[sys.executable, "-c", BUSY]] * num_processes):
        yield


@contextmanager
def memory_pressure(num_bytes: int) -> Iterator[None]:
    """Hold so many bytes, and write to every page of them again and again.

    Raises:
        MemoryError: the machine does not have them.
    """
    with _running([[sys.executable, "-c", TOUCHING, str(num_bytes)]]):
        yield


@contextmanager
def _running(commands: list[list[str]]) -> Iterator[None]:
    processes = [subprocess.Popen(c, stdout=subprocess.PIPE, text=True) for c in commands]
    try:
        for process in processes:
            assert process.stdout is not None
            if process.stdout.readline().strip() != READY:
                raise MemoryError(
                    "a process that should put pressure on this machine died before it was ready, "
                    "perhaps for lack of memory; ask for less with --memory-share"
                )
        yield
    finally:
        for process in processes:
            process.kill()
        for process in processes:
            process.communicate()
