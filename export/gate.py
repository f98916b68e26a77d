"""The success gate: what the robot does with a recipe, paired with what it does in float32.

Recipes that a CPU cannot run are judged by their float32 twins, which round as a device does. The
verdict belongs to the bundle's hash, so an export of other weights, or on a machine whose sums
decide otherwise about a code, says "not measured".
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from device_tests.episodes import Row, SuccessConfig
from device_tests.success import machine
from export.build import build, engine_bytes
from export.config import DEMO_OPTIONS, VERDICTS, BuildConfig
from export.errors import ExportError
from export.gates import words_of
from export.kept_episodes import evaluate_kept
from export.twin import TwinConfig, make_twin
from models.demo import CHECKPOINT
from models.demo.collect import DEMO_TASKS
from quant.recipes import RECIPES
from runtime import read_bundle

MEAN = "mean"
"""Row of all tasks together."""


@dataclass(frozen=True, kw_only=True, slots=True)
class GateConfig:
    """Run recipes in closed loop, paired with float32; exit code 1 if one costs too much."""

    recipes: tuple[str, ...] = ("orin-w8a8", "orin-mixed", "orin-w4a16", "cpu-int8")
    """Of the demo policy."""

    episodes: int = 150
    """Per task; there are four."""

    seed0: int = 10_000
    """Of the first episode of every task."""

    work: Path = Path("build/gate")
    """Folder for bundles, twins, and the episodes that were run already."""

    verdicts: Path = VERDICTS
    """JSON that takes the verdicts; those on other bundles are left in it."""

    def __post_init__(self) -> None:
        if unknown := sorted(set(self.recipes) - RECIPES.keys()):
            raise ValueError(f"unknown recipes {unknown}; there are {sorted(RECIPES)}")
        if self.episodes < 1:
            raise ValueError(f"episodes must be positive, got {self.episodes}")


def gate(config: GateConfig) -> int:
    """Judge every recipe.

    Returns:
        0, or 1 if a recipe costs more success than it may.

    Raises:
        ExportError: a numeric gate failed.
    """
    exact = _build(config, "float32")
    failed = 0
    for name in config.recipes:
        bundle = _build(config, name)
        runnable = bundle
        if RECIPES[name]().base != "float32":
            runnable = make_twin(TwinConfig(bundle=bundle, out=config.work / f"{name}-twin"))
        evaluation = evaluate_kept(
            config.work,
            SuccessConfig(
                bundles=(exact, runnable),
                tasks=DEMO_TASKS,
                episodes=config.episodes,
                seed0=config.seed0,
            ),
        )
        rows = {task: (row[exact], row[runnable]) for task, row in evaluation.rows.items()}
        verdict = _verdict(name, bundle, rows)
        _keep(config, read_bundle(bundle).manifest.content_sha256, verdict)
        passed = verdict["low"] > -RECIPES[name]().success_margin
        failed += not passed
        print(f"{'pass' if passed else 'FAIL'} {name}: {words_of(verdict)}", flush=True)
    if failed:
        print(f"error: {failed} of {len(config.recipes)} recipes cost success", file=sys.stderr)
    return 1 if failed else 0


def _build(config: GateConfig, recipe: str) -> Path:
    return build(
        BuildConfig(
            recipe=recipe,
            checkpoint=CHECKPOINT,
            out=config.work / recipe,
            verdicts=config.work / "none.json",  # it is being measured anew
            compile_check=False,
            **DEMO_OPTIONS,
        )
    )


def _verdict(recipe: str, bundle: Path, rows: Mapping[str, tuple[Row, Row]]) -> dict[str, Any]:
    exact, quantized = rows[MEAN]
    against = quantized.against_first
    if against is None:
        raise ExportError(f"{recipe}: the float32 episodes are missing")
    manifest = read_bundle(bundle).manifest
    parameters = sum(e.parameters for e in manifest.engines.values())
    return {
        "recipe": recipe,
        "difference": against.difference,
        "low": against.low,
        "high": against.high,
        "p": against.p,
        "episodes": quantized.rate.n,
        "successes": quantized.rate.successes,
        "float32_successes": exact.rate.successes,
        "tasks": {t: asdict(q.rate) for t, (_, q) in rows.items()},
        "action_error": manifest.action_error,
        "engine_bytes": engine_bytes(manifest),
        "parameters": parameters,
        "machine": machine(),
    }


def _keep(config: GateConfig, content_sha256: str, verdict: Mapping[str, Any]) -> None:
    verdicts = {}
    if config.verdicts.exists():
        verdicts = json.loads(config.verdicts.read_text())["verdicts"]
        verdicts = {h: v for h, v in verdicts.items() if v["recipe"] != verdict["recipe"]}
    verdicts[content_sha256] = verdict
    config.verdicts.parent.mkdir(parents=True, exist_ok=True)
    config.verdicts.write_text(json.dumps({"verdicts": verdicts}, indent=1) + "\n")
