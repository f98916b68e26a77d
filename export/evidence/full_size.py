"""The whole toolchain at the published sizes: checkpoint, export, plans, forecast and ticks.

In: a configuration and a recipe. A checkpoint with random weights is written as others write theirs
(`models.synthesize`) and exported from there; every engine is compiled for Orin's nearest relative;
the forecast is set beside the files; the bundle, or its float32 twin, ticks on ONNX Runtime. Each
of these is a process of its own, so that a peak of memory is its own.

Random weights have the arithmetic of trained ones and not their behaviour: what a recipe costs in
success is asked of the demo (`export.evidence.gate`).
"""

from __future__ import annotations

import functools
import json
import multiprocessing
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, Literal

import numpy as np

from export.build import build, engine_bytes
from export.config import BuildConfig, Size
from export.engines.compile_check import COMPUTE_CAPABILITY, MODULE, is_available
from export.engines.counts import count
from export.evidence.bench import machine, make_up_episode
from export.evidence.config import CALIBRATED_ON, FULL_SIZE, PUBLISHED_IMAGE, FullSizeConfig
from export.evidence.results import full_size_table
from export.forecast.policy import prompt_of, size
from export.forecast.stages import stage_costs
from export.subject import choose_parts
from export.twin import write_twin
from models.checkpoint import load_checkpoint, open_checkpoint
from models.synthesize import synthesize
from models.verbs import Synthesize
from quant.boards import BOARDS
from quant.recipes import RECIPES
from runtime.backends.onnxruntime import OnnxRuntimeBackend
from runtime.board.machine import peak_bytes
from runtime.bundle import read_bundle
from runtime.pages.benchmark import Ticker
from runtime.pages.show import file_bytes
from runtime.plans.build import build as compile_plans
from runtime.policy import Policy
from runtime.storage.files import Kind, check_output, write_file
from runtime.storage.folders import check_folder

MEASURED = Kind("figures of exports at full size", (b'"machine"', b'"cases"', b'"ticks"'))
TOKENS = 112
PEAK_BYTES, TICK_BYTES = 12e9, 24e9
"""Of memory, a process and its largest child together; a tick holds all weights at once."""
EXPORT_SECONDS = 3600
SPEEDUP = 1.6
"""Of a warm tick against a cold one."""
PROVED = 0.02
"""Share by which a forecast may miss what is counted in the files."""
PARTS = {
    "figures.json", "checkpoint", ".checkpoint.writing", "calibration", "held_out", "bundle",
    ".bundle.writing", "bundle.work", "bundle-report.html", "bundle-failed.html", "twin",
}  # fmt: skip
"""Of a case, in its folder."""
WARM_TICKS = 3
"""After a first one of each kind; the median counts."""
BOARD = BOARDS["agx-orin-64gb"]
"""Any: neither FLOPs nor bytes depend on it."""
Figures = dict[str, Any]


def full_size(config: FullSizeConfig) -> int:
    """Measure every case, a table last. What was measured before of other cases stays in the file.

    Returns:
        0, or 1 if something exceeds its limit.

    Raises:
        OutputError: the file of results or the folder of a case is somebody's.
    """
    path = config.results and config.results / FULL_SIZE
    found: Figures = {"cases": {}}
    if path:
        check_output(path, MEASURED)
        if path.exists():
            found = json.loads(path.read_text())
    complaints: list[str] = []
    for case in config.cases:
        name, recipe = case.split("/")
        print(f"{case}:", flush=True)
        folder = config.work / case.replace("/", "-")
        check_folder(folder, _foreign)
        measured = measure(name, recipe, folder)
        complaints += [f"{case}: {words}" for words in complaints_of(measured)]
        found["cases"][case] = measured | {"machine": machine()}
        if path:
            write_file(path, json.dumps(found, indent=1) + "\n", MEASURED)
        shutil.rmtree(folder)
    print(full_size_table(found))
    for words in complaints:
        print(f"error: {words}", file=sys.stderr)
    return int(bool(complaints))


def _foreign(folder: Path) -> str | None:
    """What in the folder of a case is not of one that was cut off."""
    strange = (name for name in sorted(p.name for p in folder.iterdir()) if name not in PARTS)
    return next((f"{name} is not of this command" for name in strange), None)


def measure(name: str, recipe: str, folder: Path) -> Figures:
    """One case.

    Args:
        name: of a configuration.
        folder: for what is large; what a run that was cut off has left in it is used.
    """
    checkpoint, bundle, twin = folder / "checkpoint", folder / "bundle", folder / "twin"
    known = folder / "figures.json"
    figures: Figures = json.loads(known.read_text()) if known.exists() else {}

    def apart(part: str, work: Callable[..., Figures], *arguments: Any) -> None:
        if part in figures:
            return
        print(f"  {part}", flush=True)
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(1, mp_context=context) as pool:
            figures[part] = pool.submit(_measured, work, *arguments).result()
        write_file(known, json.dumps(figures))

    apart("synthesize", _synthesize, name, checkpoint)
    apart("export", _export, checkpoint, recipe, folder)
    apart("counts", _counts, checkpoint, bundle, recipe)
    if is_available():
        apart("compile", _compile, bundle)
    if RECIPES[recipe]().base != "float32":
        twin.mkdir(exist_ok=True)
        apart("twin", _twin, bundle, twin)
        bundle = twin
    apart("ticks", _ticks, bundle)
    return figures


def _measured(work: Callable[..., Figures], *arguments: Any) -> Figures:
    """What a part found, and what it took; in a process of its own."""
    start = time.monotonic()
    figures = work(*arguments)
    seconds = round(time.monotonic() - start, 1)
    return figures | {"seconds": seconds, "peak_bytes": peak_bytes()}


def _synthesize(name: str, out: Path) -> Figures:
    layout: Literal["authors", "hf"] = "authors" if name == "full" else "hf"
    synthesize(Synthesize(config=name, layout=layout, out=out, seed=1))
    opened = open_checkpoint(out)
    return {"layout": layout, "bytes": opened.weights.num_bytes}


def _export(checkpoint: Path, recipe: str, folder: Path) -> Figures:
    policy, shown = load_checkpoint(checkpoint), Size(PUBLISHED_IMAGE[0], TOKENS, 1)
    for seed, kind in ((0, "calibration"), (100, "held_out")):
        make_up_episode(policy, shown, folder / kind, count=CALIBRATED_ON, seed=seed)
    bundle = build(
        BuildConfig(
            recipe=recipe,
            checkpoint=checkpoint,
            out=folder / "bundle",
            image_size=PUBLISHED_IMAGE,
            tokens=TOKENS,
            calibration=folder / "calibration",
            held_out=folder / "held_out",
            stride=1,
            verdicts=folder / "none.json",
            yardsticks=False,
            compile_check=False,
            force=True,
        )
    )
    manifest = read_bundle(bundle).manifest
    return {
        "engines": len(manifest.engines),
        "engine_bytes": engine_bytes(manifest),
        "content_sha256": manifest.content_sha256,
        "gates": {name: str(verdict) for name, verdict in manifest.gates.items()},
        "action_error": manifest.action_error,
    }


def _counts(checkpoint: Path, bundle: Path, recipe: str) -> Figures:
    """Every stage by the policy's configuration, and by its file."""
    opened, manifest = open_checkpoint(checkpoint), read_bundle(bundle).manifest
    asked = BuildConfig(
        recipe=recipe, checkpoint=checkpoint, out=bundle, image_size=PUBLISHED_IMAGE, tokens=TOKENS
    )
    policy = size(
        opened.config,
        name=str(checkpoint),
        prompt=prompt_of(opened.config, checkpoint / "tokenizer.json"),
        image=opened.image,
        image_size=PUBLISHED_IMAGE,
        slots=TOKENS,
        layers=choose_parts(asked, RECIPES[recipe](), opened.config),
    )
    files = {name: count(bundle / entry.file) for name, entry in manifest.engines.items()}
    rows: dict[str, list[str]] = {}
    for stage in manifest.graph.stages:
        if stage.engine is not None:
            rows.setdefault(manifest.graph.rows[stage.name], []).append(stage.engine)
    found: Figures = {}
    for forecast in stage_costs(policy, RECIPES[recipe](), BOARD):
        counted = [files[engine] for engine in rows.pop(forecast.name)]
        found[forecast.name] = {
            "calls": [forecast.cost.calls, len(counted)],
            "flops": [forecast.cost.flops, sum(c.flops for c in counted)],
            "weight_bytes": [forecast.cost.weight_bytes, sum(c.weight_bytes for c in counted)],
            "port_bytes": [forecast.cost.port_bytes, sum(c.port_bytes for c in counted)],
        }
    assert not rows, f"stages that are not forecast: {sorted(rows)}"
    return {"stages": found}


def _compile(bundle: Path) -> Figures:
    """Every part for SM 8.6, each in a process of the compiler's own."""
    say = functools.partial(print, flush=True)
    rows = compile_plans(bundle, backend=MODULE, capability=COMPUTE_CAPABILITY, say=say)
    return {
        "parts": {
            row.engine: {
                "onnx_bytes": row.onnx_bytes,
                "plan_bytes": row.record.plan_bytes,
                "seconds": round(row.record.seconds, 1),
                "peak_bytes": row.record.peak_bytes,
            }
            for row in rows
        }
    }


def _twin(bundle: Path, folder: Path) -> Figures:
    write_twin(bundle, folder)
    return {}


def _ticks(bundle: Path) -> Figures:
    """Everything new, and the anchor and the instruction kept; nothing of it is read from disk."""
    policy = Policy(read_bundle(bundle), None, OnnxRuntimeBackend())
    ticker = Ticker(policy)
    ticks = {
        kind: [ticker.tick(cold=kind == "cold") for _ in range(1 + WARM_TICKS)][1:]
        for kind in ("cold", "warm")
    }
    seconds = {k: float(np.median([tick.elapsed for tick in row])) for k, row in ticks.items()}
    graph = policy.graph
    return {
        "cold_s": seconds["cold"],
        "warm_s": seconds["warm"],
        "speedup": seconds["cold"] / seconds["warm"],
        "kept_for_anchor_bytes": graph.kept_bytes("anchor"),
        "stages_s": {name: s for name, s in ticks["cold"][0].stages.items()},
        "engine_bytes": {
            name: file_bytes(policy.bundle.manifest, entry)
            for name, entry in policy.bundle.manifest.engines.items()
        },
    }


def complaints_of(measured: Figures) -> Iterator[str]:
    """What exceeds its limit."""
    export, ticks = measured.get("export", {}), measured["ticks"]
    for part, figures in measured.items():
        limit = TICK_BYTES if part == "ticks" else PEAK_BYTES
        parts = figures.get("parts", {}).values()  # compiled one at a time
        peak = figures["peak_bytes"] + max((p["peak_bytes"] for p in parts), default=0)
        if peak > limit:
            yield f"{part} took {peak / 1e9:.1f} GB of memory, allowed are {limit / 1e9:.0f}"
    if export.get("seconds", 0) > EXPORT_SECONDS:
        yield f"the export took {export['seconds'] / 60:.0f} minutes, allowed are 60"
    if ticks["speedup"] < SPEEDUP:
        yield f"a warm tick is {ticks['speedup']:.2f} times as fast as a cold one, not {SPEEDUP}"
    for stage, figures in measured["counts"]["stages"].items():
        for kind in ("flops", "weight_bytes", "port_bytes"):
            forecast, counted = figures[kind]
            if abs(forecast - counted) > PROVED * counted:
                yield f"{stage}: {kind} {forecast:,} forecast, {counted:,} in the files"
