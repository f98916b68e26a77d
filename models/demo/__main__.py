"""How the shipped demo policy was made: recorded, collected, trained.

Exit codes: 0 done, 2 wrong usage or data that cannot be used, 6 simulator, 8 output that cannot be
written, 130 interrupted.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

VERBS = {
    "collect": ("models.demo.config:CollectConfig", "models.demo.collect:collect"),
    "train": ("models.demo.config:TrainConfig", "models.demo.train:train"),
    "readout": ("models.demo.config:ReadoutConfig", "models.demo.readout:readout"),
    "record": ("models.demo.config:RecordConfig", "models.demo.record:record"),
    "blinks": ("models.demo.config:BlinksConfig", "models.demo.blinks:record_blinks"),
    "remember": ("models.demo.config:RememberConfig", "models.demo.memory:remember"),
    "tokenizer": (
        "models.demo.config:TokenizerConfig",
        "models.demo.make_tokenizer:make",
    ),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Do what a verb says; returns the exit code."""
    from models.command_line import run_verbs

    return run_verbs(VERBS, "models.demo", str(__doc__), arguments)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:  # while the first modules load
        sys.exit(130)
