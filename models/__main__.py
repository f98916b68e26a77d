"""A policy's configuration to write and check, and checkpoints: random ones, and others' to import.

Exit codes: 0 done, 2 wrong usage, or a configuration or checkpoint that cannot be, 8 output that
cannot be written, 130 interrupted.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

VERBS = {
    "config": ("models.verbs:Config", "models.config_file:config"),
    "init": ("models.verbs:Init", "models.init:init"),
    "import": ("models.verbs:Import", "models.imported:import_checkpoint"),
    "synthesize": ("models.verbs:Synthesize", "models.synthesize:synthesize"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Do what a verb says; returns the exit code."""
    from models.command_line import run_verbs

    return run_verbs(VERBS, "models", str(__doc__), arguments)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:  # while the first modules load
        sys.exit(130)
