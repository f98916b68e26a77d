"""python -m quant VERB: choose a recipe by measurement, quantize at the published
size, or convert a LeRobot dataset.

Exit codes: 0 done, 1 a checkpoint cannot be used or memory peaked at its limit, 2 wrong usage, 130
interrupted.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

import tyro

from models.checkpoint import CheckpointError
from quant.convert import ConvertConfig, convert
from quant.full_size import FullSizeConfig, full_size
from quant.study import SensitivityConfig, sensitivity

VERBS: dict[str, tuple[type, Callable[..., object]]] = {
    "sensitivity": (SensitivityConfig, sensitivity),
    "full-size": (FullSizeConfig, full_size),
    "convert": (ConvertConfig, convert),
}


def main() -> int:
    try:
        chosen = tyro.extras.subcommand_cli_from_dict(
            {verb: types for verb, (types, _) in VERBS.items()},
            prog="python -m quant",
            description=__doc__,
        )
        run = next(run for types, run in VERBS.values() if type(chosen) is types)
        result = run(chosen)
    except CheckpointError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except ValueError as error:  # a configuration or data that cannot be
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    return result if isinstance(result, int) else 0


if __name__ == "__main__":
    sys.exit(main())
