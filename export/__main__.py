"""From a checkpoint to a bundle, the benchmark of it, and its way to a board.

    python -m export build RECIPE --checkpoint CHECKPOINT --out BUNDLE

Exit codes: 0 done, 1 a checkpoint or a gate failed, 2 wrong usage, 3 bundle, 4 observation, 5
engine, 6 recording or simulator, 7 the board, 8 output that cannot be written, 130 interrupted.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

VERBS = {
    "build": ("export.config:BuildConfig", "export.build:build"),
    "bench": ("export.config:BenchConfig", "export.evidence.bench:bench"),
    "bench-changes": (
        "export.evidence.config:ChangesConfig",
        "export.evidence.changes:bench_changes",
    ),
    "bench-pictures": (
        "export.evidence.config:PicturesConfig",
        "export.evidence.pictures:bench_pictures",
    ),
    "demo": ("export.config:DemoConfig", "export.demo:demo"),
    "depth": ("export.evidence.config:DepthConfig", "export.evidence.depth:depth"),
    "flash": ("export.release.config:FlashConfig", "export.release.flash:flash"),
    "flash-os": ("export.release.config:FlashOsConfig", "export.release.flash_os:flash_os"),
    "fleet": ("export.release.config:FleetConfig", "export.release.fleet:fleet"),
    "forecast": ("export.forecast.config:ForecastConfig", "export.forecast.table:print_forecast"),
    "full-size": ("export.evidence.config:FullSizeConfig", "export.evidence.full_size:full_size"),
    "gate": ("export.config:GateConfig", "export.evidence.gate:gate"),
    "keys": ("export.release.config:KeysConfig", "export.release.signing:make_keys"),
    "parts": ("export.config:PartsConfig", "export.parts:print_parts"),
    "planted": ("export.config:PlantedConfig", "export.evidence.planted:planted"),
    "recall": ("export.evidence.config:RecallConfig", "export.evidence.recall:measure"),
    "rollback": ("export.release.config:RollbackConfig", "export.release.flash:rollback"),
    "sign": ("export.release.config:SignConfig", "export.release.signing:sign"),
    "twin": ("export.config:TwinConfig", "export.twin:make_twin"),
    "crosscheck": ("export.config:CrosscheckConfig", "export.evidence.crosscheck:crosscheck"),
    "status": ("export.release.config:StatusConfig", "export.release.status:status"),
    "success": ("export.config:SuccessTableConfig", "export.evidence.success:measure"),
    "wheelhouse": (
        "export.release.config:WheelhouseConfig",
        "export.release.wheelhouse:wheelhouse",
    ),
    "w8a8": ("export.config:W8A8Config", "export.evidence.w8a8:compare"),
    "results": ("export.config:ResultsConfig", "export.evidence.results:update"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Do what a verb says; returns the exit code."""
    from device_tests.errors import REMOTE_CODE, RemoteError
    from export.errors import ExportError
    from models.command_line import run_verbs
    from models.errors import CheckpointError

    codes = {CheckpointError: 1, ExportError: 1, RemoteError: REMOTE_CODE}
    return run_verbs(VERBS, "export", str(__doc__), arguments, codes)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:  # while the first modules load
        sys.exit(130)
