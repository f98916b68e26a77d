"""Ticks of policies that remember pictures, as tables of `docs/numbers.md`.

In: the file that `make bench-pictures` writes. It is measured by `export.evidence.pictures`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

Figures = Mapping[str, Any]
LIBRARIES = {"eager": "transformers, eager", "compiled": "the same under torch.compile"}
OURS = {"recomputed": "our runtime, everything recomputed", "warm": "**our runtime, warm**"}
AGAINST = {
    "compiled": "warm against torch.compile",
    "eager": "warm against eager",
    "recomputed": "warm against our runtime recomputing",
}
EVENTS = {
    "usual": "usual tick",
    "waited": "the robot stood still, then a new picture",
    "keyframe": "only the keyframes moved on",
}


def render_pictures(folder: Path) -> str:
    """All files of `folder` as Markdown."""
    files = (json.loads(path.read_text()) for path in sorted(folder.glob("pictures-*.json")))
    return "".join(f"\n{pictures_table(found)}\n" for found in files)


def pictures_table(found: Figures) -> str:
    """A column for each number of different pictures; then the limits at published depth."""
    machine, ticks = found["machine"], found["ticks"]
    depths = {_layers(config) for config in found["configs"].values()}
    width, height = found["image_size"]
    lines = [
        f"A tick by the number of different pictures that the prompt shows, published widths with "
        f"{' and '.join(sorted(depths))}, {width} x {height}, float32. Median (p99) in ms of "
        f"{found['rounds']} ticks, rows interleaved. {machine['processor']}, "
        f"{machine['threads']} threads, {machine['date']}, commit {machine['commit']}, "
        + ", ".join(f"{p} {machine['versions'][p]}" for p in ("torch", "onnxruntime"))
        + f", transformers {machine['versions']['transformers']}.",
        "",
        *_table([_title(tick) for tick in ticks], ticks, _rows(ticks)),
    ]
    if found["limits"]:
        lines += [
            "",
            "The limit at the published depth, which nobody has run: least arithmetic of a tick "
            "against all of it.",
            "",
            *_table(
                [f"{of['pictures']} pictures, {_layers(of)}" for of in found["limits"]],
                found["limits"],
                {
                    "tokens up to the first step's pictures, and behind them": lambda of: (
                        " and ".join(map(str, of["tokens"].values()))
                    ),
                    "vision's share of all": lambda of: (
                        f"{of['kinds']['usual']['vision_share']:.0%}"
                    ),
                }
                | {words: _limit_of(kind) for kind, words in EVENTS.items()},
            ),
        ]
    return "\n".join([*lines, ""])


def _table(
    titles: Sequence[str],
    columns: Sequence[Figures],
    rows: Mapping[str, Callable[[Figures], str]],
) -> list[str]:
    return [
        "| | " + " | ".join(titles) + " |",
        "|---|" + "---:|" * len(titles),
        *(f"| {words} | " + " | ".join(map(of, columns)) + " |" for words, of in rows.items()),
    ]


def _title(tick: Figures) -> str:
    if tick["kind"] == "first":
        return f"{tick['different']}, the first tick"
    of_these = f", {tick['keyframes']} of them keyframes" if tick["keyframes"] else ""
    return f"{tick['different']}{of_these}"


def _rows(ticks: Sequence[Figures]) -> dict[str, Callable[[Figures], str]]:
    """What was measured of each, and what the arithmetic allows."""
    rows: dict[str, Callable[[Figures], str]] = {
        words: _time(row) for row, words in (LIBRARIES | OURS).items() if f"{row}_ms" in ticks[0]
    }
    rows |= {words: _speedup(row) for row, words in AGAINST.items() if row in ticks[0]["speedup"]}
    return rows | {
        "**limit of an exact cache**": lambda tick: f"{tick['limit']:.2f} x",
        "the same with our padding": lambda tick: f"{tick['padded_limit']:.2f} x",
        "arithmetic of all, and of the tick, GFLOP": lambda tick: " and ".join(
            f"{sum(tick[part].values()):.0f}" for part in ("recomputed_gflops", "gflops")
        ),
        "vision's share of all": lambda tick: f"{tick['vision_share']:.0%}",
        "pictures through the tower, recomputed and warm": lambda tick: " and ".join(
            str(tick["towers"][way]) for way in ("recomputed", "warm")
        ),
        "actions differ from the libraries' by": lambda tick: f"{tick['error']:.1e}",
    }


def _time(row: str) -> Callable[[Figures], str]:
    return lambda tick: f"{tick[f'{row}_ms']:.0f} ({tick[f'{row}_p99_ms']:.0f})"


def _speedup(row: str) -> Callable[[Figures], str]:
    return lambda tick: f"{tick['speedup'][row]:.2f} x"


def _limit_of(kind: str) -> Callable[[Figures], str]:
    return lambda of: f"{of['kinds'][kind]['limit']:.2f} x"


def _layers(config: Figures) -> str:
    return " and ".join(f"{n} {trunk}" for trunk, n in config["layers"].items()) + " layers"
