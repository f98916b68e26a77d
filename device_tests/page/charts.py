"""The drawings and tables of a measured run's timed part, as pieces of a page."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from device_tests.measure.latency import EVERYTHING, WARM, Latency
from device_tests.measure.pacing import Pacing
from device_tests.result import Measured, TimedRun
from runtime.pages.markup import Markup, element
from runtime.pages.page import Column, chart, panel, section, sentence, table
from runtime.pages.svg import bars, lines

ECDF_POINTS, TIMELINE_POINTS = 120, 400
SHOWN_MS = 0.02
"""Stages that take less are left out of the picture."""


def draw_run(measured: Measured, run: TimedRun) -> list[Markup]:
    """Headings and panels, in the order of the page."""
    parts = [
        section(
            "How long a tick takes, by what it recomputes",
            _ecdf(run.latency), _spread_table(run.latency), _noise_words(measured, run),
        ),
        section("Where a tick goes", *_stage_bars(run.latency)),
        element("h2", "On time?"),
        *(panel(*_timeline(name, pacing)) for name, pacing in run.pacing.items()),
        section("Memory", *_memory_chart(run)),
    ]  # fmt: skip
    if run.soak is not None:
        parts.append(section("Thermal soak", *_soak_charts(measured, run)))
    return parts


def _ecdf(latency: Mapping[str, Latency]) -> Markup:
    shares = np.linspace(0, 1, ECDF_POINTS)
    series = {
        kind: [(float(ms), 100 * float(s)) for ms, s in zip(quantiles, shares, strict=True)]
        for kind, of_kind in latency.items()
        for quantiles in [np.quantile(of_kind.ticks_ms, shares)]
    }
    return chart(
        lines(
            series, title="Share of ticks that are done, by milliseconds", x_title="milliseconds",
            y_title="% of ticks", height=260, from_zero=True,
        )
    )  # fmt: skip


def _spread_table(latency: Mapping[str, Latency]) -> Markup:
    body = []
    for kind, of_kind in latency.items():
        s = of_kind.spread
        figures = (f"{ms:.2f}" for ms in (s.p50_ms, s.p95_ms, s.p99_ms, s.max_ms))
        body.append([kind, *figures, str(s.n)])
    titles = ("p50 ms", "p95 ms", "p99 ms", "max ms", "ticks")
    return table([Column("tick", "name"), *map(Column, titles)], body)


def _noise_words(measured: Measured, run: TimedRun) -> Markup:
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
    return sentence(words)


def _stage_bars(latency: Mapping[str, Latency]) -> list[Markup]:
    rows: dict[str, dict[str, float]] = {}
    for kind in (EVERYTHING, WARM):
        for name, milliseconds in _by_chain(latency[kind]).items():
            if milliseconds >= SHOWN_MS:
                rows.setdefault(name, {})[kind] = milliseconds
    words = (
        "Median milliseconds; numbered calls of one engine are added up; stages under "
        f"{SHOWN_MS} ms are left out."
    )
    picture = bars(rows, title="Median milliseconds of every stage, by kind of tick", unit="ms")
    return [chart(picture), sentence(words)]


def _by_chain(latency: Latency) -> dict[str, float]:
    """Milliseconds per tick, calls such as `denoise_3` added up within their tick."""
    chains: dict[str, Any] = {}
    for name, milliseconds in latency.stages_ms.items():
        chain = re.sub(r"_\d+$", "", name)
        known = chains.get(chain, np.zeros(len(milliseconds)))
        n = min(len(known), len(milliseconds))
        chains[chain] = known[:n] + np.asarray(milliseconds[:n])
    return {chain: float(np.median(sums)) for chain, sums in chains.items()}


def _timeline(name: str, pacing: Pacing) -> list[Markup]:
    period_ms = 1e3 / pacing.rate_hz
    ready = [late + act for late, act in zip(pacing.late_ms, pacing.act_ms, strict=True)]
    seconds = [i / pacing.rate_hz for i in range(len(ready))]
    series = {
        "action ready": _thinned(seconds, ready),
        "deadline": [(0.0, period_ms), (seconds[-1], period_ms)],
        "start of the tick": _thinned(seconds, pacing.late_ms),
    }
    picture = lines(
        series, title=f"{name}: when actions were ready", x_title="seconds",
        y_title="ms after due", height=190, from_zero=True,
    )  # fmt: skip
    words = (
        f"{len(ready) + pacing.num_dropped} ticks due at {pacing.rate_hz:g} Hz, "
        f"{pacing.num_missed} late with their action, {pacing.num_dropped} dropped; jitter p99 "
        f"{pacing.jitter.p99_ms:.2f} ms"
    )
    more = element("span", f" \u00b7 {words}", class_="sub")
    return [element("h3", name, more), chart(picture)]


def _thinned(x: Sequence[float], y: Sequence[float]) -> list[tuple[float, float]]:
    """The worst of every few ticks, so that no late one is lost in the drawing."""
    step = -(-len(x) // TIMELINE_POINTS)
    return [(x[i], max(y[i : i + step])) for i in range(0, len(x), step)]


def _memory_chart(run: TimedRun) -> list[Markup]:
    growth = run.growth
    words = f"{growth.num_ticks:,} ticks, {growth.mb_per_10k_ticks:+.2f} MB per 10,000 ticks; peak "
    words += f"{growth.peak_mb:.0f} MB. The collector is off, as in the control loop."
    picture = lines(
        {"resident": growth.points}, title="Resident memory over the ticks", x_title="ticks",
        y_title="resident, MB", height=170,
    )  # fmt: skip
    return [chart(picture), sentence(words)]


def _soak_charts(measured: Measured, run: TimedRun) -> list[Markup]:
    assert run.soak is not None
    samples = run.soak.samples
    looks = {
        "ms per tick": [{"median": sample.median_ms} for sample in samples],
        "degrees C": [sample.conditions.temperatures_c for sample in samples],
        "MHz": [sample.conditions.clocks_mhz for sample in samples],
        "watts": [sample.conditions.power_w for sample in samples],
    }
    parts = []
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
        if not series:
            parts.append(sentence(f"{title}: not measured, no sensor for it here."))
            continue
        picture = lines(
            series, title=f"{title} over the soak", x_title="seconds", y_title=title, height=180,
            from_zero=title == "ms per tick",
        )  # fmt: skip
        parts.append(chart(picture))
    joules = run.soak.joules_per_chunk
    share = f"in {100 * run.soak.throttled_share:.0f} % of the samples"
    known = measured.provenance.machine.is_jetson or measured.throttled
    energy = "not measured" if joules is None else f"{joules:.3f} J per action chunk"
    words = (
        f"{run.soak.num_ticks:,} ticks in {run.soak.seconds:.0f} s, back to back; energy of the "
        f"whole board, idle power included: {energy}; throttled: "
        f"{share if known else 'not measured'}."
    )
    return [*parts, sentence(words)]
