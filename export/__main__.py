"""python -m export VERB: from a checkpoint to a bundle, and the benchmark of it.

Exit codes: 0 done, 1 a checkpoint or a gate failed, 2 wrong usage, 130 interrupted.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass

import tyro

from export.bench import BenchConfig, bench
from export.build import build
from export.config import BuildConfig
from export.crosscheck import CrosscheckConfig, crosscheck
from export.demo import DemoConfig, demo
from export.errors import ExportError
from export.gate import GateConfig, gate
from export.results import ResultsConfig, update
from export.success import SuccessTableConfig, measure
from export.twin import TwinConfig, make_twin
from models.checkpoint import CheckpointError
from runtime.errors import BundleError


@dataclass(frozen=True, kw_only=True)
class Build(BuildConfig):
    """Checkpoint -> bundle."""

    recipe: tyro.conf.Positional[str]
    """Precision recipe."""


VERBS: dict[str, tuple[type, Callable[..., object]]] = {
    "build": (Build, build),
    "bench": (BenchConfig, bench),
    "demo": (DemoConfig, demo),
    "gate": (GateConfig, gate),
    "twin": (TwinConfig, make_twin),
    "crosscheck": (CrosscheckConfig, crosscheck),
    "success": (SuccessTableConfig, measure),
    "results": (ResultsConfig, update),
}


def main() -> int:
    try:
        chosen = tyro.extras.subcommand_cli_from_dict(
            {verb: types for verb, (types, _) in VERBS.items()},
            prog="python -m export",
            description="From a checkpoint to a bundle, and the benchmark of it.",
        )
        run = next(run for types, run in VERBS.values() if type(chosen) is types)
        result = run(chosen)
    except (BundleError, CheckpointError, ExportError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except ValueError as error:  # a configuration that cannot be
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; nothing was written", file=sys.stderr)
        return 130
    return result if isinstance(result, int) else 0


if __name__ == "__main__":
    sys.exit(main())
