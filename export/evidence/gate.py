"""Success and motion: what the robot does with a recipe, paired with what it does in float32.

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
from device_tests.success.episodes import MEAN, SuccessConfig
from export.build import build, engine_bytes
from export.config import DEMO_OPTIONS, BuildConfig, GateConfig, PlantedConfig, TwinConfig
from export.errors import ExportError
from export.evidence.kept_episodes import evaluate_kept
from export.gates import motion_words, moves_well, words_of
from export.twin import make_twin
from models.demo import CHECKPOINT
from models.demo.config import DEMO_TASKS
from quant.recipes import RECIPES
from runtime import read_bundle
from runtime.storage.files import Kind, check_output, write_file

VERDICTS_FILE = Kind("a file of verdicts", (b'"verdicts"', b'"float32_successes"'))


def gate(config: GateConfig) -> int:
    """Judge every recipe, and the policy that draws several samples.

    Returns:
        0, or 1 if one of them costs more success than it may, or moves the robot worse.

    Raises:
        ExportError: a numeric gate failed.
    """
    check_output(config.verdicts, VERDICTS_FILE)
    exact = build_demo(config.work, "float32")
    failed = 0
    rows = [(name, 1) for name in config.recipes]
    rows += [("float32", config.samples)] * (config.samples > 1)
    for name, samples in rows:
        bundle = build_demo(config.work, name, samples)
        found = in_pairs(config, exact, runnable(config.work, bundle))
        row: dict[str, Any] = {"recipe": name, "samples": samples}
        verdict = row | found | _sizes(bundle)
        _keep(config, read_bundle(bundle).manifest.content_sha256, verdict)
        passed = keeps_success(name, verdict) and moves_well(verdict["motion"])
        failed += not passed
        words = f"{words_of(verdict)}; {motion_words(verdict['motion'])}"
        told = name + f" with {samples} samples" * (samples > 1)
        print(f"{'pass' if passed else 'FAIL'} {told}: {words}", flush=True)
    if failed:
        words = f"{failed} of {len(rows)} bundles cost success or motion"
        print(f"error: {words}", file=sys.stderr)
    return 1 if failed else 0


def build_demo(work: Path, recipe: str, samples: int = 1) -> Path:
    """The demo policy as every figure here has it.

    Args:
        samples: of which one is carried out.
    """
    return build(
        BuildConfig(
            recipe=recipe,
            checkpoint=CHECKPOINT,
            out=work / (recipe + f"-samples{samples}" * (samples > 1)),
            samples=samples,
            verdicts=work / "none.json",  # it is being measured anew
            compile_check=False,
            **DEMO_OPTIONS,
        )
    )


def runnable(work: Path, bundle: Path) -> Path:
    """What a CPU runs in its place: a twin, or the bundle itself."""
    recipe = read_bundle(bundle).manifest.recipe
    if recipe.base == "float32":
        return bundle
    return make_twin(TwinConfig(bundle=bundle, out=work / f"{recipe.name}-twin"))


def keeps_success(recipe: str, verdict: Mapping[str, Any]) -> bool:
    return bool(verdict["low"] > -RECIPES[recipe]().success_margin)


def in_pairs(config: GateConfig | PlantedConfig, exact: Path, bundle: Path) -> dict[str, Any]:
    """What `bundle` does in the episodes of `exact`: success, and motion.

    Raises:
        ExportError: no episode was long enough to tell how the robot moved.
    """
    evaluation = evaluate_kept(
        config.work,
        SuccessConfig(
            bundles=(exact, bundle),
            tasks=DEMO_TASKS,
            episodes=config.episodes,
            seed0=config.seed0,
        ),
    )
    rows = {task: row[bundle] for task, row in evaluation.rows.items()}
    first, mean = evaluation.rows[MEAN][exact], rows[MEAN]
    against, moves = mean.against_first, mean.motion_against_first
    if against is None or moves is None:
        raise ExportError(f"{bundle}: no pair of episodes tells how the robot moves; run more")
    return {
        "difference": against.difference,
        "low": against.low,
        "high": against.high,
        "p": against.p,
        "episodes": mean.rate.n,
        "successes": mean.rate.successes,
        "float32_successes": first.rate.successes,
        "tasks": {task: asdict(row.rate) for task, row in rows.items()},
        "motion": asdict(moves),
        "machine": machine(),
    }


def _sizes(bundle: Path) -> dict[str, Any]:
    manifest = read_bundle(bundle).manifest
    return {
        "action_error": manifest.action_error,
        "engine_bytes": engine_bytes(manifest),
        "parameters": sum(e.parameters for e in manifest.engines.values()),
    }


def _keep(config: GateConfig, content_sha256: str, verdict: Mapping[str, Any]) -> None:
    verdicts = {}
    if config.verdicts.exists():
        verdicts = json.loads(config.verdicts.read_text())["verdicts"]
        kept = RECIPES.keys() - {verdict["recipe"]}
        verdicts = {h: v for h, v in verdicts.items() if v["recipe"] in kept}
    verdicts[content_sha256] = verdict
    write_file(config.verdicts, json.dumps({"verdicts": verdicts}, indent=1) + "\n", VERDICTS_FILE)
