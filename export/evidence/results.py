"""Published numbers: tables in README, docs and model card, rendered from `docs/results/*.json`.

python -m export results        render them again
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from device_tests.success.motion import FIGURES
from export.config import PLANTED, VERDICTS, W8A8, ResultsConfig
from export.evidence.changes_table import render_changes
from export.evidence.config import CALIBRATED_ON, DEPTH, FULL_SIZE
from export.evidence.delays import delay_pictures, render_delays
from export.evidence.pictures_table import render_pictures
from export.evidence.success_table import render_recall, render_success
from export.gates import MOTION_BOUND, MOTION_FIGURES
from quant.recipes import RECIPES
from runtime.graph import whole_of
from runtime.pages.svg import standalone
from runtime.storage.files import DRAWING, Kind, write_file

BEGIN, END = "<!-- results -->", "<!-- end of results -->"
MARKED = Kind("a text with a section for results", (BEGIN.encode(), END.encode()))
WORDS = {
    "eager": "transformers + UniCeption + diffusers, eager",
    "compiled": "the same under torch.compile",
    "reference": "our torch reference",
    "uncached": "our runtime, every input changed",
    "warm": "**our runtime, anchor kept**",
    "resized_warm": "the same, an engine resizes the image",
    "sampled_warm": "the same, eight chunks sampled at once",
    "int8_warm": "anchor kept, in int8 (recipe `cpu-int8`)",
}
CALLS = {
    "anchor_vision": "vision, anchor",
    "anchor_project": "patch projection, anchor",
    "prefix": "language, prefix",
    "frame_vision": "vision, frame",
    "frame_project": "patch projection, frame",
    "suffix": "language, suffix",
    "spatial": "spatial encoder",
    "condition": "condition, all modulations",
    "denoise": "denoise steps",
    "actions": "**actions**",
}
"""Stages without their numbers, and what they are."""


def update(config: ResultsConfig) -> None:
    """Put the rendered tables where they belong."""
    success, benchmarks = render_success(config.results), render_benchmarks(config.results)
    motion, recall = render_motion(config.results), render_recall(config.results)
    for path, tables in (
        (config.readme, benchmarks + motion),
        (
            config.numbers,
            success
            + recall
            + render_recipes(config.results)
            + motion
            + render_delays(config.results)
            + render_depth(config.results)
            + render_full_size(config.results)
            + benchmarks
            + render_pictures(config.results)
            + render_changes(config.results),
        ),
        (config.precision, render_w8a8(config.results)),
        (config.card, success),
        (config.recall_card, recall),
    ):
        write_file(path, place(path.read_text(), tables), MARKED)
    for name, picture in delay_pictures(config.results).items():
        write_file(config.numbers.with_name(name), standalone(picture), DRAWING)


def place(text: str, tables: str) -> str:
    """`text` with the section between the markers replaced.

    Raises:
        ValueError: if the markers are not there, once and in order.
    """
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        raise ValueError(f"the text must hold {BEGIN!r} and {END!r}, once and in this order")
    before, rest = text.split(BEGIN)
    return f"{before}{BEGIN}\n{tables}{END}{rest.split(END)[1]}"


def render_recipes(folder: Path) -> str:
    """What each recipe weighs and costs as Markdown; nothing if that was not measured."""
    path = folder / VERDICTS.name
    if not path.exists():
        return ""
    verdicts = _verdicts(path)
    lines = [
        "",
        f"Recipes on the demo policy, {verdicts[0]['episodes']} episodes in pairs with float32, 95 "
        "% Newcombe interval of the difference; bfloat16 recipes by their float32 twins, which "
        f"round after every operation. {_measured(verdicts)}",
        "",
        "| recipe | engines, of float32 | actions moved | success | against float32, points |",
        "|---|---:|---:|---:|---:|",
    ]
    for v in verdicts:
        share = v["engine_bytes"] / 4 / v["parameters"]
        success, exact = v["successes"] / v["episodes"], v["float32_successes"] / v["episodes"]
        lines.append(
            f"| {_named(v)} | {v['engine_bytes'] / 1e6:.1f} MB, {share:.0%} | "
            f"{v['action_error']:.1%} | {success:.1%} (float32 {exact:.1%}) | "
            f"{100 * v['difference']:+.1f} [{100 * v['low']:+.1f}, {100 * v['high']:+.1f}] |"
        )
    return "\n".join([*lines, "", ""])


def render_motion(folder: Path) -> str:
    """How smoothly the robot moves, by recipe and by planted fault; nothing if not measured."""
    recipes, faults = folder / VERDICTS.name, folder / PLANTED
    tables = []
    if recipes.exists():
        rows = {_named(v): v for v in _verdicts(recipes) if v.get("motion")}
        tables.append(_motion_table("Motion in closed loop", rows))
    if faults.exists():
        found = json.loads(faults.read_text())["faults"]
        rows = {f"{f['fault']['words']}, `{f['fault']['recipe']}`": f for f in found}
        tables.append(_motion_table("The same with faults planted in finished bundles", rows))
    return "".join(tables)


def _motion_table(what: str, rows: dict[str, dict[str, Any]]) -> str:
    if not rows:
        return ""
    motion = next(iter(rows.values()))["motion"]
    lines = [
        "",
        f"{what}, times float32's in the same {motion['pairs']} episodes ({motion['left_out']} "
        "too short to tell): geometric mean, 95 % interval. The gate allows an upper end of "
        f"{MOTION_BOUND:g}. {_measured(list(rows.values()))}",
        "",
        "| | " + " | ".join(FIGURES[name] for name in MOTION_FIGURES) + " | success, points |",
        "|---|" + "---:|" * (len(MOTION_FIGURES) + 1),
    ]
    lines += [_motion_row(words, verdict) for words, verdict in rows.items()]
    return "\n".join([*lines, "", ""])


def _named(verdict: Mapping[str, Any]) -> str:
    samples = verdict.get("samples", 1)
    return f"`{verdict['recipe']}`" + f", {samples} samples" * (samples > 1)


def _verdicts(path: Path) -> list[dict[str, Any]]:
    """In the order in which recipes are told."""
    order = list(RECIPES)
    verdicts: list[dict[str, Any]] = [*json.loads(path.read_text())["verdicts"].values()]
    return sorted(
        verdicts, key=lambda verdict: [*order, verdict["recipe"]].index(verdict["recipe"])
    )


def _measured(rows: list[dict[str, Any]]) -> str:
    """When, at which commits, and on what; a verdict is kept as long as its bundle has its hash."""
    dates, commits, processors = (
        ", ".join(sorted({row["machine"][key] for row in rows}))
        for key in ("date", "commit", "processor")
    )
    return f"Measured {dates} at commit {commits} on {processors}."


def _motion_row(words: str, verdict: dict[str, Any]) -> str:
    figures = verdict["motion"]["figures"]
    cells = [
        "{ratio:.2f} [{low:.2f}, {high:.2f}]".format(**figures[name])
        + " **fails**" * (figures[name]["high"] > MOTION_BOUND)
        for name in MOTION_FIGURES
    ]
    success = "{:+.1f} [{:+.1f}, {:+.1f}]".format(
        *(100 * verdict[key] for key in ("difference", "low", "high"))
    )
    return f"| {words} | {' | '.join(cells)} | {success} |"


def render_w8a8(folder: Path) -> str:
    """Ways to int8 inputs as Markdown, a table per policy; nothing if they were not compared."""
    path = folder / W8A8
    if not path.exists():
        return ""
    lines = []
    for name, policy in json.loads(path.read_text())["policies"].items():
        machine = policy["machine"]
        columns = list(next(iter(policy["forms"].values())))
        titles = ["`o_proj` alone" if c == "o_proj" else c for c in columns]
        lines += [
            "",
            f"{name.capitalize()}: worst of {policy['observations']} observations, scales learnt "
            "from as many others; networks in multiples of what bfloat16 does to them, actions "
            "relative to float32. "
            f"Measured {machine['date']} at commit {machine['commit']} on {machine['processor']}.",
            "",
            "| | " + " | ".join(titles) + " |",
            "|---|" + "---:|" * len(columns),
        ]
        for form, errors in policy["forms"].items():
            cells = [f"{errors[c]:.1%}" if c == "actions" else f"{errors[c]:.1f}" for c in columns]
            lines.append(f"| {form} | " + " | ".join(cells) + " |")
    return "\n".join([*lines, "", ""])


def render_depth(folder: Path) -> str:
    """Errors at full depth as Markdown; nothing if they were not measured."""
    path = folder / DEPTH
    return "\n" + depth_table(json.loads(path.read_text())) + "\n" if path.exists() else ""


def depth_table(found: dict[str, Any]) -> str:
    """What `export.evidence.depth` measured, a line for each call of a network."""
    machine = found["machine"]
    calls: dict[str, list[dict[str, Any]]] = {}
    for stage in found["stages"]:
        calls.setdefault(whole_of(stage["stage"]), []).append(stage)
    lines = [
        f"One tick of `{found['config']}`, {found['parameters'] / 1e9:.2f} B parameters "
        f"({found['weights']}), our stages of a layer each against transformers, UniCeption and "
        "diffusers. Relative errors, as they add up from the camera on; float32 but for the last "
        f"two columns. Peak memory {found['peak_gb']:.1f} GB, {found['cpu_minutes']:.0f} minutes "
        f"of one core. Measured {machine['date']} at commit {machine['commit']} on "
        f"{machine['processor']}.",
        "",
        "| | stages | first | last | worst | libraries from their float64 | ours from it |",
        "|---|" + "---:|" * 6,
    ]
    for call, stages in calls.items():
        shown = [stages[0]["error"], stages[-1]["error"]]
        shown += [max(s[kind] for s in stages) for kind in ("error", "of_libraries", "of_ours")]
        cells = [str(len(stages)), *(f"{value:.1e}" for value in shown)]
        lines.append(f"| {CALLS.get(call, call)} | " + " | ".join(cells) + " |")
    return "\n".join([*lines, ""])


def render_full_size(folder: Path) -> str:
    """Exports at full size as Markdown; nothing if none was measured."""
    path = folder / FULL_SIZE
    return "\n" + full_size_table(json.loads(path.read_text())) + "\n" if path.exists() else ""


def full_size_table(found: dict[str, Any]) -> str:
    """What `export.evidence.full_size` measured, a column for each case; then each part's plan."""
    cases = found["cases"]
    machines = {
        f"{case}: {m['machine']['date']}, commit {m['machine']['commit']}, "
        f"{m['machine']['processor']}, {m['machine']['threads']} threads"
        for case, m in cases.items()
    }
    lines = [
        "Policies of the published size, random weights, from a checkpoint in its makers' layout; "
        f"calibrated on {CALIBRATED_ON} observations and judged by as many others. Ticks are on "
        "ONNX Runtime on the CPU, bfloat16 as its float32 twin. Peaks are of one process, mapped "
        "files too. Measured " + "; ".join(sorted(machines)) + ".",
        "",
        "| | " + " | ".join(f"`{case}`" for case in cases) + " |",
        "|---|" + "---:|" * len(cases),
    ]
    for words, cell in FULL_SIZE_ROWS.items():
        lines.append(f"| {words} | " + " | ".join(cell(m) for m in cases.values()) + " |")
    parts = {case: m["compile"]["parts"] for case, m in cases.items() if "compile" in m}
    if parts:
        names = dict.fromkeys(name for row in parts.values() for name in row)
        lines += [
            "",
            "Each part compiled for SM86 by TensorRT for RTX: seconds, GB of memory at most.",
            "",
            "| engine | " + " | ".join(f"`{case}`" for case in parts) + " |",
            "|---|" + "---:|" * len(parts),
        ]
        for name in names:
            cells = (_compiled(row.get(name)) for row in parts.values())
            lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join([*lines, ""])


def _compiled(part: dict[str, Any] | None) -> str:
    return "-" if part is None else f"{part['seconds']:.0f} s, {part['peak_bytes'] / 1e9:.1f}"


def _of(part: str, cell: Callable[[dict[str, Any]], str]) -> Callable[[dict[str, Any]], str]:
    """A cell of one part of a case; a dash where the part was not run."""
    return lambda measured: cell(measured[part]) if part in measured else "-"


def _farthest(counts: dict[str, Any]) -> str:
    pairs = [pair for stage in counts["stages"].values() for pair in stage.values()]
    return f"{max(abs(f - c) / c for f, c in pairs):.1%}"


FULL_SIZE_ROWS: dict[str, Callable[[dict[str, Any]], str]] = {
    "checkpoint": _of("synthesize", lambda p: f"{p['bytes'] / 1e9:.1f} GB, {p['layout']}"),
    "written in, at most": _of(
        "synthesize", lambda p: f"{p['seconds'] / 60:.0f} min, {p['peak_bytes'] / 1e9:.1f} GB"
    ),
    "exported in, at most": _of(
        "export", lambda p: f"{p['seconds'] / 60:.0f} min, {p['peak_bytes'] / 1e9:.1f} GB"
    ),
    "engines": _of("export", lambda p: f"{p['engines']}, {p['engine_bytes'] / 1e9:.2f} GB"),
    "actions moved": _of("export", lambda p: f"{p['action_error']:.1%}"),
    "gates": _of(
        "export",
        lambda p: (
            ", ".join(n for n, v in p["gates"].items() if v.startswith("fail")) or "none fails"
        ),
    ),
    "forecast from count, farthest": _of("counts", _farthest),
    "cold tick": _of("ticks", lambda p: f"{p['cold_s']:.1f} s"),
    "warm tick": _of("ticks", lambda p: f"{p['warm_s']:.1f} s"),
    "warm against cold": _of("ticks", lambda p: f"{p['speedup']:.2f} x"),
    "ticks held at most": _of("ticks", lambda p: f"{p['peak_bytes'] / 1e9:.1f} GB"),
    "kept for the anchor": _of("ticks", lambda p: f"{p['kept_for_anchor_bytes'] / 1e6:.1f} MB"),
}
"""By what stands before them."""


def render_benchmarks(folder: Path) -> str:
    """All benchmark files of `folder` as Markdown."""
    return "".join(_render_file(path) for path in sorted(folder.glob("bench-*.json")))


def _render_file(path: Path) -> str:
    raw = json.loads(path.read_text())
    machine, sizes = raw["machine"], raw["sizes"]
    names = list(sizes)
    lines = [
        "",
        f"{machine['processor']}, {machine['threads']} threads, {machine['date']}, commit "
        f"{machine['commit']}, "
        + ", ".join(f"{p} {v}" for p, v in machine["versions"].items())
        + "; power mode and clocks: "
        + f"{machine['power_mode']}. Camera image to action chunk, median (p99) in ms of "
        + ", ".join(f"{sizes[n]['rounds']} ticks ({n})" for n in names)
        + ", rows interleaved.",
        "",
        "| | " + " | ".join(names) + " |",
        "|---|" + "---:|" * len(names),
    ]
    measured = (row for row in WORDS if any(f"{row}_ms" in size for size in sizes.values()))
    for row in measured:  # a file is as old as its commit, and may not know all of them
        words = WORDS[row]
        lines.append(f"| {words} | " + " | ".join(_cell(sizes[n], row) for n in names) + " |")
    extra = {
        "warm tick against every input changed": lambda s: f"{s['warm_speedup']:.2f} x",
        "warm tick against its roofline here": lambda s: f"{s['times_roofline']:.2f} x",
        "int8 against float32, both warm": lambda s: f"{s['int8_speedup']:.2f} x",
        "actions moved by int8, on random weights": lambda s: f"{s['int8_action_error']:.1%}",
        "outside engines, warm, ms": lambda s: f"{s['overhead_ms']:.2f}",
        "of these the interpreter itself, ms": lambda s: f"{s['interpreter_ms']:.3f}",
        "of these host functions (image, state), ms": lambda s: f"{s['host_functions_ms']:.2f}",
        "host functions where an engine resizes, ms": (
            lambda s: f"{s['resized_host_functions_ms']:.2f}"
        ),
        "padding of the language calls": lambda s: ", ".join(
            f"{call} {share:.0%}" for call, share in s["padded_share"].items()
        ),
    }
    for words, of in extra.items():
        lines.append(f"| {words} | " + " | ".join(of(sizes[n]) for n in names) + " |")
    return "\n".join([*lines, "", ""])


def _cell(size: dict[str, Any], row: str) -> str:
    if f"{row}_ms" not in size:
        return "not measured"
    return f"{size[f'{row}_ms']:.1f} ({size[f'{row}_p99_ms']:.1f})"
