"""A run as one HTML page that needs nothing else: numbers, charts, film strips."""

from __future__ import annotations

import base64
import html
import io
import platform
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from .benchmark import Quantiles, Timing
from .bundle import Bundle
from .graph import Graph
from .loop import LoopConfig, Step, Trace
from .policy import CHANGING
from .show import draw
from .svg import bars, lines

FRAMES = 9
"""Pictures in a film strip, besides the anchor."""
SHOWN_MS = 0.02
STYLE = """
body{margin:0;background:#f6f7f9;color:#1f2933;font:15px/1.5 ui-sans-serif,system-ui,'Segoe UI',
Roboto,'DejaVu Sans',sans-serif}main{max-width:960px;margin:0 auto;padding:36px 24px 60px}
h1{font-size:26px;margin:0 0 4px}h2{font-size:18px;margin:36px 0 10px}
h3{font-size:15px;margin:0 0 8px}
.sub{color:#697586;margin:0}.note{background:#fff8e6;border:1px solid #f3d999;border-radius:8px;
padding:10px 14px;margin:18px 0}.cards{display:flex;flex-wrap:wrap;gap:12px;margin:22px 0}
.card{flex:1 1 130px;background:#fff;border:1px solid #e3e8ef;border-radius:10px;padding:14px 16px}
.card b{display:block;font-size:23px;font-weight:650;font-variant-numeric:tabular-nums}
.card span{color:#697586;font-size:13px}.panel{background:#fff;border:1px solid #e3e8ef;
border-radius:10px;padding:18px;margin:0 0 16px}.strip{display:flex;gap:5px;margin:0 0 14px}
.strip figure{margin:0;flex:1 1 0;min-width:0}.strip img{width:100%;display:block;border-radius:5px}
.strip .anchor img{outline:3px solid #d97706;outline-offset:-3px}
.strip figcaption{font-size:11px;color:#697586;text-align:center}
table{border-collapse:collapse;width:100%;font-size:13px;font-variant-numeric:tabular-nums}
th{color:#697586;font-weight:500}
th,td{text-align:right;padding:4px 8px;border-bottom:1px solid #eef1f5}
th:first-child,td:first-child{text-align:left}
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Summary:
    """The numbers of a run. A tick is cold if it computed the anchor, warm if it did not."""

    warm: Quantiles
    cold: Quantiles
    warm_stages: Mapping[str, Quantiles]
    """Per stage; the calls of a chain such as denoising are added up within a tick."""
    cold_stages: Mapping[str, Quantiles]
    anchor_bytes: int
    saved_ms: float
    """Per warm tick: medians of the stages that depend on the anchor alone."""
    late: Quantiles
    num_dropped: int
    num_steps: int
    num_successes: int
    num_judged: int
    """Episodes whose robot can tell success; a replayed one cannot."""


def summarize(graph: Graph, traces: Sequence[Trace]) -> Summary:
    """Condense traces of episodes on one policy."""
    only_anchor = frozenset({"anchor"})
    anchored = {n for n, needs in graph.stage_dependencies.items() if needs == only_anchor}
    thinks = [step for trace in traces for step in trace.steps if step.act_s is not None]
    cold = [step for step in thinks if anchored & step.stages_s.keys()]
    warm = [step for step in thinks if not anchored & step.stages_s.keys()]
    cold_stages = _stage_quantiles(graph, cold)
    late = [step.late_s for trace in traces for step in trace.steps]
    return Summary(
        warm=Quantiles.of([s.act_s or 0.0 for s in warm]),
        cold=Quantiles.of([s.act_s or 0.0 for s in cold]),
        warm_stages=_stage_quantiles(graph, warm),
        cold_stages=cold_stages,
        anchor_bytes=graph.kept_for("anchor", CHANGING),
        saved_ms=sum(q.p50 for name, q in cold_stages.items() if name in anchored),
        late=Quantiles.of(late),
        num_dropped=sum(trace.num_dropped for trace in traces),
        num_steps=len(late),
        num_successes=sum(trace.success is True for trace in traces),
        num_judged=sum(trace.success is not None for trace in traces),
    )


def write_report(
    path: Path,
    bundle: Bundle,
    traces: Sequence[Trace],
    timings: Mapping[str, Timing],
    config: LoopConfig,
    title: str,
) -> None:
    """Write the page.

    Args:
        path: the file; its folder is made.
        bundle: what ran.
        traces: what happened in the loop.
        timings: `warm` and `cold` ticks measured back to back (`runtime.benchmark.measure`).
        config: how the loop was paced.
        title: heading.
    """
    graph = bundle.manifest.graph
    numbers = summarize(graph, traces)
    parts = [
        f"<h1>{html.escape(title)}</h1>",
        f'<p class="sub">{html.escape(_provenance(bundle))}</p>',
        f'<p class="note">Weights: {html.escape(bundle.manifest.description or "undescribed")}. '
        f"Licence: {html.escape(bundle.manifest.license)}.</p>",
        _cards(numbers, timings, config),
        "<h2>Where a tick goes</h2>",
        f'<div class="panel">{_stage_bars(graph, timings)}{_sentence(numbers, timings)}</div>',
        "<h2>What is recomputed when</h2>",
        f'<div class="panel">{draw(graph)}</div>',
        "<h2>Episodes</h2>",
        *(_episode(trace) for trace in sorted(traces, key=lambda trace: trace.success is None)),
        "<h2>Engines</h2>",
        f'<div class="panel">{_engines(bundle)}</div>',
    ]
    page = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f"<title>{html.escape(title)}</title><style>{STYLE}</style></head>"
        f"<body><main>{''.join(parts)}</main></body></html>\n"
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page)


def processor_name() -> str:
    """The CPU as its vendor calls it."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.lower().startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _provenance(bundle: Bundle) -> str:
    m = bundle.manifest
    return (
        f"{m.policy}, recipe {m.recipe}, {len(m.engines)} engines, on ONNX Runtime "
        f"{m.tool_versions.get('onnxruntime', '?')}, {processor_name()}, "
        f"{time.strftime('%Y-%m-%d %H:%M')}"
    )


def _cards(numbers: Summary, timings: Mapping[str, Timing], config: LoopConfig) -> str:
    warm, cold = timings["warm"].tick, timings["cold"].tick
    loop = numbers.warm
    cards = [
        (f"{warm.p50:.1f} ms", f"warm tick, median of {warm.n}"),
        (f"{cold.p50:.1f} ms", f"tick that recomputes all, median of {cold.n}"),
        (f"{cold.p50 / warm.p50:.2f} x", "faster with the anchor kept"),
        (f"{numbers.anchor_bytes / 1024:.0f} KiB", "kept for the anchor"),
        (
            f"{numbers.num_dropped} of {numbers.num_steps}",
            f"steps dropped at {config.rate_hz:g} Hz; {loop.p50:.1f} ms a thought in the loop, "
            f"p99 {loop.p99:.1f}",
        ),
    ]
    if numbers.num_judged:
        share = f"{numbers.num_successes} of {numbers.num_judged}"
        cards.insert(0, (share, "simulated episodes succeeded"))
    body = "".join(f'<div class="card"><b>{a}</b><span>{b}</span></div>' for a, b in cards)
    return f'<div class="cards">{body}</div>'


def _stage_bars(graph: Graph, timings: Mapping[str, Timing]) -> str:
    """Calls of one chain are one row; rows stand in running order."""
    rows: dict[str, dict[str, float]] = {}
    for stage in graph.stages:
        for series, timing in timings.items():
            if stage.name in timing.stages:
                row = rows.setdefault(_row(stage.name, stage.label), {})
                row[series] = row.get(series, 0.0) + timing.stages[stage.name].p50
    return bars({n: row for n, row in rows.items() if max(row.values()) >= SHOWN_MS}, unit="ms")


def _sentence(numbers: Summary, timings: Mapping[str, Timing]) -> str:
    warm, cold = timings["warm"].tick, timings["cold"].tick
    return (
        f'<p class="sub">Median milliseconds, {warm.n} ticks of each kind back to back; stages '
        f"under {SHOWN_MS} ms are left out. A warm tick does not run the stages that depend on the "
        f"anchor or the instruction alone: {cold.p50 - warm.p50:.1f} ms saved a tick, "
        f"{(cold.p50 - warm.p50) * numbers.warm.n / 1e3:.2f} s in this run.</p>"
    )


def _episode(trace: Trace) -> str:
    verdict = {True: "success", False: "no success", None: "replayed: nobody can tell success"}
    picks = np.unique(np.linspace(0, len(trace.steps) - 1, FRAMES).astype(int))
    strip = _frame(trace.anchor, "anchor")
    strip += "".join(_frame(trace.steps[i].image, f"{i * trace.period_s:.1f} s") for i in picks)
    dims = len(trace.steps[0].action)
    actions = {
        f"action {d}": [(i * trace.period_s, float(s.action[d])) for i, s in enumerate(trace.steps)]
        for d in range(dims)
    }
    thinks = [
        (i * trace.period_s, s.act_s * 1e3)
        for i, s in enumerate(trace.steps)
        if s.act_s is not None
    ]
    return (
        f'<div class="panel"><h3>&ldquo;{html.escape(trace.instruction)}&rdquo; '
        f'<span class="sub">&middot; {verdict[trace.success]} &middot; {len(trace.steps)} steps'
        f'</span></h3><div class="strip">{strip}</div>'
        + lines(actions, x_title="seconds", y_title="robot units", height=190)
        + lines(
            {"think": thinks},
            x_title="seconds",
            y_title="ms per thought",
            height=120,
            from_zero=True,
        )
        + "</div>"
    )


def _frame(image: NDArray[np.uint8], words: str) -> str:
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "PNG")
    data = base64.b64encode(stream.getvalue()).decode()
    kind = ' class="anchor"' if words == "anchor" else ""
    return (
        f'<figure{kind}><img alt="{words}" src="data:image/png;base64,{data}">'
        f"<figcaption>{words}</figcaption></figure>"
    )


def _engines(bundle: Bundle) -> str:
    head = "".join(
        f"<th>{name}</th>" for name in ("engine", "weights", "bytes", "parity", "compile check")
    )
    rows = []
    for name, entry in bundle.manifest.engines.items():
        files = bundle.manifest.files.items()
        stem = entry.file.removesuffix(".onnx")
        size = sum(file.bytes for path, file in files if path.startswith(stem))
        cells = (name, f"{entry.parameters:,}", f"{size:,}", f"{entry.parity:.1e}", entry.compiled)
        rows.append("<tr>" + "".join(f"<td>{html.escape(c)}</td>" for c in cells) + "</tr>")
    return f"<table><tr>{head}</tr>{''.join(rows)}</table>"


def _stage_quantiles(graph: Graph, steps: Sequence[Step]) -> dict[str, Quantiles]:
    row_of = {stage.name: _row(stage.name, stage.label) for stage in graph.stages}
    rows: dict[str, list[float]] = {row: [] for row in row_of.values()}
    for step in steps:
        sums: dict[str, float] = {}
        for stage, seconds in step.stages_s.items():
            sums[row_of[stage]] = sums.get(row_of[stage], 0.0) + seconds
        for row, total in sums.items():
            rows[row].append(total)
    return {row: Quantiles.of(values) for row, values in rows.items() if values}


def _row(name: str, label: str) -> str:
    """Numbered calls of one engine share a row."""
    return label if name == f"{label}_{name.rsplit('_', 1)[-1]}" else name
