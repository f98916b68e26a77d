"""A run as one HTML page: numbers, charts, film strips, predicted against recorded actions."""

from __future__ import annotations

import platform
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import numpy as np

from ..board.machine import read_machine
from ..bundle import Bundle
from ..control.loop import LoopConfig
from ..control.trace import Step, Trace
from ..declarations import Output, from_source
from ..engine import Backend
from ..functions.calls import constants
from ..graph import Graph
from ..normalization import Scaling, scaling
from ..policy import Policy
from ..storage.files import PAGE, write_file
from .benchmark import Quantiles, Timing
from .imitation import EXPLAINED, Run, action_charts, error_table
from .leaf_checks import checks_of
from .leaves import show_errors, show_leaves
from .markup import Markup, element
from .page import Column, cards, chart, document, note, panel, section, sentence, table
from .picture import frame
from .show import draw, file_bytes, networks
from .svg import bars, lines

FRAMES = 9
"""Pictures in a film strip, besides the anchor."""
SHOWN_MS = 0.02


@dataclass(frozen=True, kw_only=True, slots=True)
class Summary:
    """The numbers of a run. A tick is cold if it computed what is kept, warm if it did not."""

    warm: Quantiles
    cold: Quantiles
    warm_stages: Mapping[str, Quantiles]
    """Per stage; the calls of a chain such as denoising are added up within a tick."""
    cold_stages: Mapping[str, Quantiles]
    kept: tuple[str, ...]
    """The latches, or without any what the operator gives: what is computed for them is kept."""
    kept_bytes: int
    saved_ms: float
    """Per warm tick: medians of the stages that are kept for them."""
    late: Quantiles
    age: Quantiles
    """Of every action when it was sent."""
    num_dropped: int
    num_misses: int
    num_overtaken: int
    num_stale: int
    """Sums of what `Trace` counts under these names."""
    num_steps: int
    num_successes: int
    num_judged: int
    """Episodes whose robot can tell success; a replayed one cannot."""
    interventions: Mapping[str, int]
    """Of the guard, by kind; none where it let everything pass."""
    noticed: Mapping[str, int]
    """What leaves contradicted, by kind."""


def summarize(graph: Graph, traces: Sequence[Trace]) -> Summary:
    """Condense traces of episodes on one policy."""
    kept = from_source(graph.inputs, "latch") or from_source(graph.inputs, "operator")
    anchored = frozenset[str]().union(*map(graph.kept_stages, kept))
    thinks = [step for trace in traces for step in trace.steps if step.act_s is not None]
    cold = [step for step in thinks if anchored & step.stages_s.keys()]
    warm = [step for step in thinks if not anchored & step.stages_s.keys()]
    cold_stages = _stage_quantiles(graph, cold)
    kept_rows = {graph.rows[name] for name in anchored}
    late = [step.late_s for trace in traces for step in trace.steps]
    return Summary(
        warm=Quantiles.of([s.act_s or 0.0 for s in warm]),
        cold=Quantiles.of([s.act_s or 0.0 for s in cold]),
        warm_stages=_stage_quantiles(graph, warm),
        cold_stages=cold_stages,
        kept=tuple(kept),
        kept_bytes=sum(map(graph.kept_bytes, kept)),
        saved_ms=sum(q.p50 for row, q in cold_stages.items() if row in kept_rows),
        late=Quantiles.of(late),
        age=Quantiles.of([step.age_s for trace in traces for step in trace.steps]),
        num_dropped=sum(trace.num_dropped for trace in traces),
        num_misses=sum(trace.num_misses for trace in traces),
        num_overtaken=sum(trace.num_overtaken for trace in traces),
        num_stale=sum(trace.num_stale for trace in traces),
        num_steps=len(late),
        num_successes=sum(trace.success is True for trace in traces),
        num_judged=sum(trace.success is not None for trace in traces),
        interventions=sum((Counter(trace.interventions) for trace in traces), Counter[str]()),
        noticed=sum((trace.noticed for trace in traces), Counter[str]()),
    )


def write_report(
    path: Path,
    policy: Policy,
    runs: Sequence[Run],
    timings: Mapping[str, Timing],
    config: LoopConfig,
    title: str,
) -> None:
    """Write the page.

    Args:
        path: the file; its folder is made.
        policy: what ran.
        runs: what happened in the loop.
        timings: `warm` and `cold` ticks measured back to back (`runtime.pages.benchmark.measure`).
        config: how the loop was paced.
        title: heading.
    """
    write_file(path, draw_page(policy, runs, timings, config, title), PAGE)


def draw_page(
    policy: Policy,
    runs: Sequence[Run],
    timings: Mapping[str, Timing],
    config: LoopConfig,
    title: str,
) -> str:
    """The page as text; see `write_report`."""
    graph, manifest = policy.graph, policy.bundle.manifest
    numbers = summarize(graph, [run.trace for run in runs])
    units, scale = action_scales(policy)
    errors = error_table(runs, units)
    known = show_errors([run.trace for run in runs], policy.outputs)
    parts = [
        sentence(_provenance(policy)),
        note(f"Weights: {manifest.description or 'undescribed'}. Licence: {manifest.license}."),
        _cards(numbers, timings, config),
        section(
            "Where a tick goes",
            chart(_stage_bars(graph, timings)),
            sentence(_saved(numbers, timings)),
        ),
        section("What is recomputed when", chart(draw(graph))),
        section("What the guard changed", *_interventions(numbers)),
        *([section("Predicted against recorded", *errors, sentence(EXPLAINED))] if errors else []),
        *([section("Leaves against what the simulator knew", *known)] if known else []),
        element("h2", "Episodes"),
        *(
            _episode(run, units, scale, policy.outputs)
            for run in sorted(runs, key=lambda run: run.trace.success is None)
        ),
        section("Engines", _engines(policy.bundle)),
    ]
    return document(title, parts)


def processor_name() -> str:
    """The CPU as its vendor calls it."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.lower().startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _provenance(policy: Policy) -> str:
    m, machine = policy.bundle.manifest, read_machine()
    mode = f", power mode {machine.power_mode.name}" if machine.power_mode else ""
    waits = policy.backend.waits
    mode += "" if waits == "not applicable" else f", waiting for the GPU: {waits}"
    return (
        f"{m.policy}, recipe {m.title}, {len(m.engines)} engines, "
        f"on {_version(policy.backend)}, "
        f"{machine.board}, {processor_name()}{mode}, {time.strftime('%Y-%m-%d %H:%M')}"
    )


def _version(backend: Backend) -> str:
    """What computes, as it is installed here."""
    try:
        return f"{backend.name} {metadata.version(backend.name)}"
    except metadata.PackageNotFoundError:
        return backend.name


def _cards(numbers: Summary, timings: Mapping[str, Timing], config: LoopConfig) -> Markup:
    warm, cold = timings["warm"].tick, timings["cold"].tick
    loop, kept = numbers.warm, " and ".join(numbers.kept) or "constants"
    found = [
        (f"{warm.p50:.1f} ms", f"warm tick, median of {warm.n}"),
        (f"{cold.p50:.1f} ms", f"tick that recomputes all, median of {cold.n}"),
        (f"{cold.p50 / warm.p50:.2f} x", f"faster with the {kept} kept"),
        (f"{numbers.kept_bytes / 1024:.0f} KiB", f"kept for the {kept}"),
        (
            f"{numbers.num_dropped} of {numbers.num_steps}",
            f"steps dropped at {config.rate_hz:g} Hz; {loop.p50:.1f} ms a thought in the loop, "
            f"p99 {loop.p99:.1f}",
        ),
        (
            f"{numbers.age.p50:.0f} ms",
            f"median age of an action when it is sent, p99 {numbers.age.p99:.0f}; "
            f"{numbers.num_overtaken} too old to be sent, {numbers.num_misses} steps without one",
        ),
    ]
    if numbers.num_judged:
        share = f"{numbers.num_successes} of {numbers.num_judged}"
        found.insert(0, (share, "simulated episodes succeeded"))
    return cards(found)


def _interventions(numbers: Summary) -> list[Markup]:
    if not numbers.interventions:
        return [sentence(f"Nothing, in {numbers.num_steps} steps.")]
    rows = sorted(numbers.interventions.items(), key=lambda row: -row[1])
    head = [Column("kind", "words"), Column("times")]
    found = table(head, [(kind, f"{count:,}") for kind, count in rows])
    words = "Times that the action guard held, limited or refused something, in all steps:"
    return [sentence(f"{words} {numbers.num_steps}."), found]


def _stage_bars(graph: Graph, timings: Mapping[str, Timing]) -> Markup:
    """Calls of one chain are one row; rows stand in running order."""
    rows: dict[str, dict[str, float]] = {}
    for stage in graph.stages:
        for series, timing in timings.items():
            if stage.name in timing.stages:
                row = rows.setdefault(graph.rows[stage.name], {})
                row[series] = row.get(series, 0.0) + timing.stages[stage.name].p50
    shown = {n: row for n, row in rows.items() if max(row.values()) >= SHOWN_MS}
    return bars(shown, title="Median milliseconds of every stage, warm and cold", unit="ms")


def _saved(numbers: Summary, timings: Mapping[str, Timing]) -> str:
    warm, cold = timings["warm"].tick, timings["cold"].tick
    return (
        f"Median milliseconds, {warm.n} ticks of each kind back to back; stages "
        f"under {SHOWN_MS} ms are left out. A warm tick runs only the stages that something "
        f"changed for: {cold.p50 - warm.p50:.1f} ms saved a tick, "
        f"{(cold.p50 - warm.p50) * numbers.warm.n / 1e3:.2f} s in this run."
    )


def action_scales(policy: Policy) -> tuple[Sequence[str], Sequence[float]]:
    """Per action dimension: its unit, and what one unit of the policy is in it."""
    target, width = policy.graph.target, policy.chunk_shape[1]
    units, scale = policy.outputs[target].units or ("",) * width, [1.0] * width
    for stage in policy.graph.writers(target):
        params = constants(stage) if stage.function else None
        if isinstance(params, Scaling):
            statistics = policy.bundle.manifest.statistics[policy.embodiment]
            scale = scaling(params, statistics).scale.tolist()
    return units, scale


def _episode(
    run: Run, units: Sequence[str], scale: Sequence[float], outputs: Mapping[str, Output]
) -> Markup:
    trace = run.trace
    verdict = {True: "success", False: "no success", None: "replayed: nobody can tell success"}
    words = f" \u00b7 {run.name} \u00b7 {verdict[trace.success]} \u00b7 {len(trace.steps)} steps"
    return panel(
        element("h3", f"\u201c{trace.instruction}\u201d", element("span", words, class_="sub")),
        *(_strip(trace, camera) for camera in trace.films),
        *(_charts(run, units, scale) if trace.steps else []),
        *(show_leaves(trace, outputs) if trace.leaves else []),
        *checks_of(trace),
    )  # fmt: skip


def _charts(run: Run, units: Sequence[str], scale: Sequence[float]) -> list[Markup]:
    """What the policy did, and how long it thought."""
    thinks = [
        (i * run.trace.period_s, step.act_s * 1e3)
        for i, step in enumerate(run.trace.steps)
        if step.act_s is not None
    ]
    return [
        action_charts(run, units, scale),
        *error_table([run], units),
        element("h4", "Milliseconds per thought"),
        chart(
            lines(
                {"think": thinks}, title="Milliseconds per thought, over the episode",
                x_title="seconds", y_title="ms", height=130, from_zero=True,
            )
        ),
    ]  # fmt: skip


def _strip(trace: Trace, camera: str) -> Markup:
    """What one camera saw: in the first observation, and then."""
    pictures = list(trace.films[camera].pictures.items())
    picks = np.linspace(0, len(pictures) - 1, min(FRAMES, len(pictures))).astype(int)
    strip = [frame(trace.first.values[camera], "anchor")]
    strip += [frame(p, f"{i * trace.period_s:.1f} s") for i, p in (pictures[k] for k in picks)]
    return element("div", *strip, class_="strip scroll", tabindex=0)


def _engines(bundle: Bundle) -> Markup:
    head = [
        Column("engine", "name"), Column("weights"), Column("bytes"), Column("parity"),
        Column("compile check", "words"),
    ]  # fmt: skip
    rows = []
    for name, parts in networks(bundle.manifest).items():
        size = sum(file_bytes(bundle.manifest, entry) for entry in parts.values())
        weights = sum(entry.parameters for entry in parts.values())
        parity = max(entry.parity for entry in parts.values())
        compiled = "; ".join(dict.fromkeys(entry.compiled for entry in parts.values()))
        rows.append((name, f"{weights:,}", f"{size:,}", f"{parity:.1e}", compiled))
    return table(head, rows)


def _stage_quantiles(graph: Graph, steps: Sequence[Step]) -> dict[str, Quantiles]:
    rows: dict[str, list[float]] = {row: [] for row in graph.rows.values()}
    for step in steps:
        sums: dict[str, float] = {}
        for stage, seconds in step.stages_s.items():
            row = graph.rows[stage]
            sums[row] = sums.get(row, 0.0) + seconds
        for row, total in sums.items():
            rows[row].append(total)
    return {row: Quantiles.of(values) for row, values in rows.items() if values}
