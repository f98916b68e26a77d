"""What a process took of memory."""

from __future__ import annotations

import resource
import sys


def peak_bytes(who: int = resource.RUSAGE_SELF) -> int:
    """Most that this process ever held, mapped files too; with `resource.RUSAGE_CHILDREN`, the most
    that one of its children did."""
    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(who).ru_maxrss
