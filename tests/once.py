"""What takes long to make is made once for all workers of a test run."""

from __future__ import annotations

import fcntl
from collections.abc import Callable
from pathlib import Path


def once(path: Path, make: Callable[[Path], object]) -> Path:
    """`path`, which the first who asks makes. Tests must not write into it."""
    path.parent.mkdir(exist_ok=True)
    with path.with_name(f"{path.name}.once").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not path.exists():
            make(path)
    return path
