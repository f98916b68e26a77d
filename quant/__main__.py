"""Choose a recipe by measurement, or convert a LeRobot dataset.

Exit codes: 0 done, 1 a checkpoint cannot be used, 2 wrong usage, 6 recording, 8 output that cannot
be written, 130 interrupted.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

VERBS: dict[str, tuple[str, str]] = {
    "sensitivity": ("quant.config:SensitivityConfig", "quant.search.study:sensitivity"),
    "convert": ("quant.data.convert:ConvertConfig", "quant.data.convert:convert"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Do what a verb says; returns the exit code."""
    from models.command_line import run_verbs
    from models.errors import CheckpointError

    return run_verbs(VERBS, "quant", str(__doc__), arguments, {CheckpointError: 1})


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:  # while the first modules load
        sys.exit(130)
