"""Success rates in closed loop as Markdown, rendered from `docs/results/*.json`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from export.config import RESULT
from export.evidence.config import RECALL
from runtime.robots.metaworld import TASKS


def render_success(folder: Path) -> str:
    """Success rates in closed loop as Markdown; nothing if they were not measured."""
    path = folder / RESULT
    if not path.exists():
        return ""
    raw = json.loads(path.read_text())
    rows = raw["rows"]
    tasks = list(rows["anchor kept"])
    lines = [
        "",
        _measured(raw, "Success in closed loop", "episodes per task"),
        "",
        "| | " + " | ".join(tasks) + " |",
        "|---|" + "---:|" * len(tasks),
    ]
    for name, cells in rows.items():
        shown = [_rate(cells[task]) if task in cells else "" for task in tasks]
        lines.append(f"| {name} | " + " | ".join(shown) + " |")
    against = rows["torch reference"]["mean"]["against_first"]
    cold = raw["cold"]
    lines += [
        "",
        f"Torch reference against the runtime, in pairs: {100 * against['difference']:+.2f} points "
        f"[{100 * against['low']:+.2f}, {100 * against['high']:+.2f}]; their actions on the "
        f"recorded episodes differ by at most {raw['recorded_error']:.1e}. Recomputing everything "
        f"at every tick gave the same bits in {cold['same']} of {cold['n']} episodes.",
        "",
        "The instruction decides, not the scene: episodes that touch the marker it names, and in "
        "brackets those that touch the scene's own.",
        "",
    ]
    told = raw["instructions"]
    lines.append("| told | " + " | ".join(f"scene of {scene}" for scene in told) + " |")
    lines.append("|---|" + "---:|" * len(told))
    for task, scenes in told.items():
        cells = [
            f"{scenes[s]['named']} of {scenes[s]['n']}"
            + ("" if s == task else f" ({scenes[s]['own']})")
            for s in told
        ]
        lines.append(f"| {TASKS[task].instruction} | " + " | ".join(cells) + " |")
    return "\n".join([*lines, "", ""])


def render_recall(folder: Path) -> str:
    """What a memory is worth, as Markdown; nothing if it was not measured."""
    path = folder / RECALL
    if not path.exists():
        return ""
    raw = json.loads(path.read_text())
    cold = raw["cold"]
    rows = {
        "with its keyframe": raw["with"],
        "without: nothing is remembered but the first frame": raw["without"],
    }
    lines = [
        "",
        _measured(raw, f"Success of `{raw['task']}` in closed loop", "episodes"),
        "",
        "| | success |",
        "|---|---:|",
        *(f"| {name} | {_rate(row)} |" for name, row in rows.items()),
        "",
        f"{raw['num_markers']} markers are alike but for the blink: a guess is right in one of "
        f"{raw['num_markers']} episodes. Recomputing everything at every tick gave the same bits "
        f"in {cold['same']} of {cold['n']} episodes.",
    ]
    return "\n".join([*lines, "", ""])


def _measured(raw: dict[str, Any], what: str, of: str) -> str:
    machine, last = raw["machine"], raw["seed0"] + raw["episodes"] - 1
    return (
        f"{what}, {raw['episodes']} unseen {of} (seeds {raw['seed0']} to {last}), 95 % Wilson "
        f"interval. Measured {machine['date']} at commit {machine['commit']} on "
        f"{machine['processor']}. Weights: {raw['weights']}."
    )


def _rate(cell: dict[str, Any]) -> str:
    share, low, high = (100 * cell[k] for k in ("successes", "low", "high"))
    return f"{share / cell['n']:.0f} % [{low:.0f}, {high:.0f}]"
