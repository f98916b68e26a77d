"""The success gate: what the robot does with a recipe, paired with what it does in float32.

Recipes that a CPU cannot run are judged by their float32 twins, which round as a device does. The
verdict belongs to the bundle's hash, so an export of other weights, or on a machine whose sums
decide otherwise about a code, says "not measured".
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from device_tests.success.__main__ import machine
from device_tests.success.episodes import Row, SuccessConfig
from export.build import build, engine_bytes
from export.config import DEMO_OPTIONS, BuildConfig, GateConfig
from export.errors import ExportError
from export.evidence.kept_episodes import evaluate_kept
from export.gates import words_of
from export.twin import TwinConfig, make_twin
from models.demo import CHECKPOINT
from models.demo.config import DEMO_TASKS
from quant.recipes import RECIPES
from runtime import read_bundle
from runtime.storage.files import Kind, check_output, write_file

VERDICTS_FILE = Kind("a file of verdicts", (b'"verdicts"', b'"float32_successes"'))
MEAN = "mean"
"""Row of all tasks together."""


def gate(config: GateConfig) -> int:
    """Judge every recipe.

    Returns:
        0, or 1 if a recipe costs more success than it may.

    Raises:
        ExportError: a numeric gate failed.
    """
    check_output(config.verdicts, VERDICTS_FILE)
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
    write_file(config.verdicts, json.dumps({"verdicts": verdicts}, indent=1) + "\n", VERDICTS_FILE)
