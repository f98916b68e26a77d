"""The drawings and tables of a measured run's timed part, as pieces of a page."""

from __future__ import annotations

import html
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from device_tests.latency import CHANGES, WARM, Latency
from device_tests.pacing import Pacing
from device_tests.result import Measured, TimedRun
from runtime.svg import bars, lines

ECDF_POINTS, TIMELINE_POINTS = 120, 400
SHOWN_MS = 0.02
"""Stages that take less are left out of the picture."""


def draw_run(measured: Measured, run: TimedRun) -> list[str]:
    """Headings and panels, in the order of the page."""
    parts = [
        "<h2>How long a tick takes, by what it recomputes</h2>",
        panel(_ecdf(run.latency) + _spread_table(run.latency) + _noise_words(measured, run)),
        "<h2>Where a tick goes</h2>",
        panel(_stage_bars(run.latency)),
        "<h2>On time?</h2>",
        *(panel(_timeline(name, pacing)) for name, pacing in run.pacing.items()),
        "<h2>Memory</h2>",
        panel(_memory_chart(run)),
    ]
    if run.soak is not None:
        parts += ["<h2>Thermal soak</h2>", panel(_soak_charts(measured, run))]
    return parts


def panel(content: str) -> str:
    """A white box around it."""
    return f'<div class="panel">{content}</div>'


def table(head: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    """A table of finished cells."""
    rows = "".join(f"<tr>{''.join(cells)}</tr>" for cells in body)
    return f"<table><tr>{''.join(f'<th>{name}</th>' for name in head)}</tr>{rows}</table>"


def cell(words: str, kind: str = "") -> str:
    """A cell of plain text; `kind` is its class in the style sheet."""
    named = f' class="{kind}"' if kind else ""
    return f"<td{named}>{html.escape(words)}</td>"


def _ecdf(latency: Mapping[str, Latency]) -> str:
    shares = np.linspace(0, 1, ECDF_POINTS)
    series = {
        kind: [(float(ms), 100 * float(s)) for ms, s in zip(quantiles, shares, strict=True)]
        for kind, of_kind in latency.items()
        for quantiles in [np.quantile(of_kind.ticks_ms, shares)]
    }
    return lines(series, x_title="milliseconds", y_title="% of ticks", height=260, from_zero=True)


def _spread_table(latency: Mapping[str, Latency]) -> str:
    body = []
    for kind, of_kind in latency.items():
        s = of_kind.spread
        cells = [f"{ms:.2f}" for ms in (s.p50_ms, s.p95_ms, s.p99_ms, s.max_ms)]
        body.append([cell(kind), *map(cell, cells), cell(str(s.n))])
    return table(("tick", "p50 ms", "p95 ms", "p99 ms", "max ms", "ticks"), body)


def _noise_words(measured: Measured, run: TimedRun) -> str:
    words = f"Two halves of the warm ticks differ by {run.noise_ms:.3f} ms in their medians: less "
    words += "than that is no difference. "
    try:
        change = measured.change()
    except ValueError as error:
        words += f"Not compared with an earlier result: {error}."
    else:
        words += (
            f"Against the accepted result of {change.against.date}, commit "
            f"{change.against.commit}: {change.difference_ms:+.3f} ms, noise "
            f"{change.noise_ms:.3f} ms: {change.direction}."
        )
    return f'<p class="sub">{html.escape(words)}</p>'


def _stage_bars(latency: Mapping[str, Latency]) -> str:
    rows: dict[str, dict[str, float]] = {}
    for kind in (CHANGES[-1], WARM):
        for name, milliseconds in _by_chain(latency[kind]).items():
            if milliseconds >= SHOWN_MS:
                rows.setdefault(name, {})[kind] = milliseconds
    note = (
        f"Median milliseconds; numbered calls of one engine are added up; stages under {SHOWN_MS}"
    )
    return bars(rows, unit="ms") + f'<p class="sub">{note} ms are left out.</p>'


def _by_chain(latency: Latency) -> dict[str, float]:
    """Milliseconds per tick, calls such as `denoise_3` added up within their tick."""
    chains: dict[str, Any] = {}
    for name, milliseconds in latency.stages_ms.items():
        chain = re.sub(r"_\d+$", "", name)
        known = chains.get(chain, np.zeros(len(milliseconds)))
        n = min(len(known), len(milliseconds))
        chains[chain] = known[:n] + np.asarray(milliseconds[:n])
    return {chain: float(np.median(sums)) for chain, sums in chains.items()}


def _timeline(name: str, pacing: Pacing) -> str:
    period_ms = 1e3 / pacing.rate_hz
    ready = [late + act for late, act in zip(pacing.late_ms, pacing.act_ms, strict=True)]
    seconds = [i / pacing.rate_hz for i in range(len(ready))]
    series = {
        "action ready": _thinned(seconds, ready),
        "deadline": [(0.0, period_ms), (seconds[-1], period_ms)],
        "start of the tick": _thinned(seconds, pacing.late_ms),
    }
    chart = lines(series, x_title="seconds", y_title="ms after due", height=190, from_zero=True)
    words = (
        f"{len(ready) + pacing.num_dropped} ticks due at {pacing.rate_hz:g} Hz, "
        f"{pacing.num_missed} late with their action, {pacing.num_dropped} dropped; jitter p99 "
        f"{pacing.jitter.p99_ms:.2f} ms"
    )
    return f'<h3>{html.escape(name)} <span class="sub">&middot; {words}</span></h3>{chart}'


def _thinned(x: Sequence[float], y: Sequence[float]) -> list[tuple[float, float]]:
    """The worst of every few ticks, so that no late one is lost in the drawing."""
    step = -(-len(x) // TIMELINE_POINTS)
    return [(x[i], max(y[i : i + step])) for i in range(0, len(x), step)]


def _memory_chart(run: TimedRun) -> str:
    growth = run.growth
    words = f"{growth.num_ticks:,} ticks, {growth.mb_per_10k_ticks:+.2f} MB per 10,000 ticks; peak "
    words += f"{growth.peak_mb:.0f} MB. The collector is off, as in the control loop."
    chart = lines({"resident": growth.points}, x_title="ticks", y_title="resident, MB", height=170)
    return chart + f'<p class="sub">{words}</p>'


def _soak_charts(measured: Measured, run: TimedRun) -> str:
    assert run.soak is not None
    samples = run.soak.samples
    looks = {
        "ms per tick": [{"median": sample.median_ms} for sample in samples],
        "degrees C": [sample.conditions.temperatures_c for sample in samples],
        "MHz": [sample.conditions.clocks_mhz for sample in samples],
        "watts": [sample.conditions.power_w for sample in samples],
    }
    charts = []
    for title, values in looks.items():
        names = dict.fromkeys(name for of_sample in values for name in of_sample)
        series = {
            name: [
                (sample.time_s, of[name])
                for sample, of in zip(samples, values, strict=True)
                if name in of
            ]
            for name in names
        }
        if series:
            from_zero = title == "ms per tick"
            drawing = lines(
                series, x_title="seconds", y_title=title, height=180, from_zero=from_zero
            )
            charts.append(drawing)
        else:
            charts.append(f'<p class="sub">{title}: not measured, no sensor for it here.</p>')
    joules = run.soak.joules_per_chunk
    share = f"in {100 * run.soak.throttled_share:.0f} % of the samples"
    known = measured.provenance.machine.is_jetson or measured.throttled
    energy = "not measured" if joules is None else f"{joules:.3f} J per action chunk"
    words = (
        f"{run.soak.num_ticks:,} ticks in {run.soak.seconds:.0f} s, back to back; energy of the "
        f"whole board, idle power included: {energy}; throttled: "
        f"{share if known else 'not measured'}."
    )
    return "".join(charts) + f'<p class="sub">{words}</p>'
