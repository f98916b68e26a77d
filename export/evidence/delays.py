"""What a thought's delay costs in closed loop, as a table and pictures of `docs/numbers.md`.

In: the file that `make delays` writes. It is measured by `device_tests.success.delays`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from runtime.control.loop import LoopConfig
from runtime.pages.markup import Markup
from runtime.pages.svg import lines as line_chart

DELAYS = "delays-demo.json"
PICTURES = {
    "delays-success.svg": ("success, %", "Success by delay, of each way to use chunks"),
    "delays-jerk.svg": ("jerk, times that of sync", "Jerk by delay, of each way to use chunks"),
}
"""Files, beside the text: what goes up in them, and what they show."""
PERIOD_MS = 1e3 / LoopConfig().rate_hz


def render_delays(folder: Path) -> str:
    """The table as Markdown; nothing if not measured."""
    path = folder / DELAYS
    if not path.exists():
        return ""
    raw = json.loads(path.read_text())
    machine, config = raw["machine"], raw["config"]
    lines = [
        "",
        f"What a delay costs, recipe `{raw['bundle']['recipe']}`, {config['episodes']} episodes of "
        f"each of {len(config['tasks'])} tasks, in pairs with `sync` without delay, at "
        f"{LoopConfig().rate_hz:g} Hz, a thought every {config['execute']} actions. Its "
        "delay is one of virtual time. Jerk and seam step are times those of `sync` in the same "
        f"episodes, 95 % interval. Measured {machine['date']} at commit {machine['commit']} on "
        f"{machine['processor']}.",
        "",
        *(f"![{words}]({name})" for name, (_, words) in PICTURES.items()),
        "",
        "| chunks | delay | success | against sync, points | jerk | seam step | overtaken | time |",
        "|---|" + "---:|" * 7,
        *map(_row, raw["delays"]),
    ]
    return "\n".join([*lines, "", ""])


def _row(row: dict[str, Any]) -> str:
    steps, rate, success = row["delay_steps"], row["rate"], row["success"]
    head = f"| `{row['chunks']}` | {steps * PERIOD_MS:.0f} ms | "
    if rate is None:
        return f"{head}refused: no chunk lasts for it | | | | | |"
    told = [f"{rate['successes']} of {rate['n']}, {_percent(rate)}"]
    told.append(
        "" if success is None else f"{100 * success['difference']:+.1f} {_percent(success)}"
    )
    for name in ("mean_jerk", "seam_step"):
        figure = None if row["motion"] is None else row["motion"]["figures"][name]
        told.append(
            ""
            if figure is None
            else f"{figure['ratio']:.2f} [{figure['low']:.2f}, {figure['high']:.2f}]"
        )
    told += [f"{row['overtaken']:.1f}", f"{row['seconds']:.1f} s"]
    return head + " | ".join(told) + " |"


def _percent(interval: dict[str, Any]) -> str:
    return f"[{100 * interval['low']:.1f}, {100 * interval['high']:.1f}]"


def delay_pictures(folder: Path) -> dict[str, Markup]:
    """By the name of the file; none if not measured."""
    path = folder / DELAYS
    if not path.exists():
        return {}
    success: dict[str, list[tuple[float, float]]] = {}
    jerk: dict[str, list[tuple[float, float]]] = {}
    for row in json.loads(path.read_text())["delays"]:
        rate, motion, delay_ms = row["rate"], row["motion"], row["delay_steps"] * PERIOD_MS
        if rate is None:
            continue
        share = 100 * rate["successes"] / rate["n"]
        success.setdefault(row["chunks"], []).append((delay_ms, share))
        if motion is not None:
            ratio = motion["figures"]["mean_jerk"]["ratio"]
            jerk.setdefault(row["chunks"], []).append((delay_ms, ratio))
        else:
            jerk[row["chunks"]] = [(delay_ms, 1.0)]  # sync without delay, by which the others are
    return {
        name: line_chart(
            series, title=words, x_title="delay of a thought, ms", y_title=y_title, from_zero=True
        )
        for (name, (y_title, words)), series in zip(PICTURES.items(), (success, jerk), strict=True)
    }
