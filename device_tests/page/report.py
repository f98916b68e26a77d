"""A measured run on paper: `device.json` with everything, `device.html` for people."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from device_tests.budgets import TARGET
from device_tests.ledger import Row
from device_tests.measure.latency import WARM, Latency
from device_tests.measure.pacing import Pacing
from device_tests.page.charts import draw_run
from device_tests.result import Measured
from runtime.backends.parity import Parity
from runtime.pages.markup import Markup, element
from runtime.pages.page import (
    Column,
    alarm,
    badge,
    cards,
    document,
    facts,
    note,
    section,
    sentence,
    table,
)
from runtime.storage.files import PAGE, Kind, write_file

JSON_NAME, PAGE_NAME = "device.json", "device.html"
RESULT = Kind("a result of the device tests", (b'"verdict"', b'"provenance"'))
WRITTEN = {JSON_NAME: RESULT, PAGE_NAME: PAGE}
DIGITS = 6


def write_results(folder: Path, measured: Measured, rows: Sequence[Row]) -> None:
    """Write both files; the folder is made."""
    write_file(folder / JSON_NAME, write_json(measured, rows), RESULT)
    write_file(folder / PAGE_NAME, write_page(measured, rows), PAGE)


def write_json(measured: Measured, rows: Sequence[Row]) -> str:
    """Everything that was measured, every sample included. `reference` is what is compared."""
    run = measured.run
    document = {
        "verdict": "fail" if any(row.verdict == "fail" for row in rows) else "pass",
        "rows": [asdict(row) for row in rows],
        "reference": None if measured.reference is None else asdict(measured.reference),
        "throttled": list(measured.throttled),
        "provenance": asdict(measured.provenance) | {"power_mode": measured.provenance.power_mode},
        "budget": asdict(measured.budget),
        "before": asdict(measured.before),
        "after": asdict(measured.after),
        "cold_start_s": measured.cold_start_s,
        "resident_mb": measured.resident_mb,
        "taken_mb": measured.taken_mb,
        "parity": [asdict(v) | {"passed": v.passed} for v in measured.parity],
        "latency": {} if run is None else {k: _of_latency(v) for k, v in run.latency.items()},
        "noise_ms": None if run is None else run.noise_ms,
        "pacing": {} if run is None else {k: _of_pacing(v) for k, v in run.pacing.items()},
        "growth": None
        if run is None
        else asdict(run.growth) | {"mb_per_10k_ticks": run.growth.mb_per_10k_ticks},
        "soak": None
        if run is None or run.soak is None
        else asdict(run.soak) | {"joules_per_chunk": run.soak.joules_per_chunk},
    }
    return json.dumps(_rounded(document), indent=1) + "\n"


def write_page(measured: Measured, rows: Sequence[Row]) -> str:
    """The result as one HTML page."""
    p = measured.provenance
    title = f"Device test on {p.board}"
    parts = [
        sentence(_subtitle(measured)),
        *_notes(measured, rows),
        _cards(measured, rows),
        section("Measured against allowed", _rows_table(rows)),
        *([] if measured.run is None else draw_run(measured, measured.run)),
        section("Parity with the golden data", _parity_table(measured.parity)),
        section("What it ran on", _facts(measured)),
    ]
    return document(title, parts)


def _subtitle(measured: Measured) -> str:
    p = measured.provenance
    return (
        f"{p.machine.board}, {p.processor}; power mode {p.power_mode}; recipe {p.recipe} on "
        f"{p.backend} {p.versions.get(p.backend, '')}; commit {p.commit}, {p.date}"
    )


def _notes(measured: Measured, rows: Sequence[Row]) -> list[Markup]:
    broken = [f"{row.name} ({row.measured})" for row in rows if row.verdict == "fail"]
    found = [f"Broken: {'; '.join(broken)}."] if broken else []
    if measured.run is None:
        found.append(
            "Parity failed: this machine computes something else than the exporter's. Nothing was "
            "timed, and no robot should be driven with it."
        )
    if measured.throttled:
        words = ", ".join(measured.throttled)
        found.append(f"The board throttled ({words}): all times are those of a hot board.")
    alarms = [alarm(*(element("div", words) for words in found))] if found else []
    if measured.budget.measured == TARGET:
        alarms.append(
            note(
                "Nobody has measured this board before: what is allowed is a target, not what such "
                "a board was seen to keep."
            )
        )
    return alarms


def _cards(measured: Measured, rows: Sequence[Row]) -> Markup:
    judged = [row for row in rows if row.verdict != "not measured"]
    kept = sum(row.verdict == "pass" for row in judged)
    found = [
        (f"{kept} of {len(judged)}", f"promises kept; {len(rows) - len(judged)} not measured"),
        (f"{measured.cold_start_s:.2f} s", "from the bundle on disk to the first action"),
        (f"{measured.resident_mb:.0f} MB", "resident memory, policy warm"),
    ]
    if measured.run is not None:
        warm = measured.run.latency[WARM].spread
        calm = next(iter(measured.run.pacing.values()))
        found[1:1] = [
            (
                f"{warm.p50_ms:.1f} ms",
                f"warm tick, median of {warm.n}; p99 {warm.p99_ms:.1f} ms",
            ),
            (f"{100 * calm.missed_share:.1f} %", f"deadlines missed at {calm.rate_hz:g} Hz"),
        ]
    return cards(found)


def _rows_table(rows: Sequence[Row]) -> Markup:
    head = [
        Column("verdict", "name"), Column("promise", "words"), Column("measured"),
        Column("allowed"), Column("note", "words"),
    ]  # fmt: skip
    return table(
        head,
        ([badge(row.verdict), row.name, row.measured, row.allowed, row.note] for row in rows),
    )


def _parity_table(parity: Sequence[Parity]) -> Markup:
    head = [
        Column("verdict", "name"), Column("tensor", "name"), Column("relative error"),
        Column("allowed"),
    ]  # fmt: skip
    rows = (
        (badge("pass" if v.passed else "fail"), v.name, f"{v.error:.1e}", f"{v.allowed:.1e}")
        for v in parity
    )
    return table(head, rows)


def _facts(measured: Measured) -> Markup:
    p, m = measured.provenance, measured.provenance.machine
    found = {
        "board": f"{m.board}; budgets of {p.board} ({measured.budget.measured})",
        "system": f"Jetson Linux {m.l4t or '-'}, JetPack {m.jetpack or '-'}, CUDA {m.cuda or '-'}, "
        f"TensorRT {m.tensorrt or '-'}, Python {m.python}",
        "power mode": p.power_mode,
        "waiting for the GPU": p.way_to_wait,
        "processor": f"{p.processor}, {m.num_cpus} cores, {m.memory_bytes / 1e9:.1f} GB",
        "clocks before, MHz": _numbers(measured.before.clocks_mhz),
        "clocks after, MHz": _numbers(measured.after.clocks_mhz),
        "temperatures before, C": _numbers(measured.before.temperatures_c),
        "temperatures after, C": _numbers(measured.after.temperatures_c),
        "power after, W": _numbers(measured.after.power_w),
        "packages": ", ".join(f"{name} {version}" for name, version in p.versions.items()),
        "bundle": f"recipe {p.recipe}, {p.num_weights:,} weights, sha256 {p.bundle_sha256[:16]}",
        "weights": p.weights,
        "when": f"{p.date}, commit {p.commit}",
    }
    return facts(found)


def _numbers(values: Mapping[str, float]) -> str:
    return ", ".join(f"{n} {v:.4g}" for n, v in values.items()) or "not measured: no sensor here"


def _of_latency(latency: Latency) -> dict[str, object]:
    stages = {name: asdict(spread) for name, spread in latency.stages.items()}
    return asdict(latency.spread) | {"stages": stages, "ticks_ms": latency.ticks_ms}


def _of_pacing(pacing: Pacing) -> dict[str, object]:
    figures = {"jitter": asdict(pacing.jitter), "missed_share": pacing.missed_share}
    return asdict(pacing) | figures | {"num_missed": pacing.num_missed}


def _rounded(value: Any) -> Any:
    """Six significant digits: nothing here is known better."""
    if isinstance(value, float):
        return float(f"{value:.{DIGITS}g}") if np.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(item) for item in value]
    return value
