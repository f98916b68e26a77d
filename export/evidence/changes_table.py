"""Ticks of policies by what changed, as tables of `docs/numbers.md`.

In: the file that `make bench-changes` writes. It is measured by `export.evidence.changes`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

Figures = Mapping[str, Any]
KINDS = {"all": "everything, nothing kept", "tick": "what changes in every tick"}


def render_changes(folder: Path) -> str:
    """All files of `folder` as Markdown."""
    files = (json.loads(path.read_text()) for path in sorted(folder.glob("changes-*.json")))
    return "".join(f"\n{changes_table(found)}\n" for found in files)


def changes_table(found: Figures) -> str:
    """A table for each configuration, a row for each kind of tick."""
    machine = found["machine"]
    width, height = found["image_size"]
    lines = [
        f"A tick by what is new in it, {width} x {height}, float32. Median (p99) in ms of "
        f"{found['rounds']} ticks, rows interleaved. {machine['processor']}, "
        f"{machine['threads']} threads, {machine['date']}, commit {machine['commit']}, "
        + ", ".join(f"{p} {machine['versions'][p]}" for p in ("torch", "onnxruntime"))
        + f", transformers {machine['versions']['transformers']}.",
    ]
    for name, config in found["configs"].items():
        rows = [row for row in found["changes"] if row["config"] == name]
        lines += ["", *_of(name, config, rows)]
        leaves = [row for row in found["leaves"] if row["config"] == name]
        lines += ["", *_leaves(leaves)] if leaves else []
    return "\n".join([*lines, ""])


def _of(name: str, config: Figures, rows: Sequence[Figures]) -> list[str]:
    layers = ", ".join(f"{n} {trunk}" for trunk, n in config["layers"].items())
    libraries = {
        words: config[f"{row}_ms"]
        for row, words in (("eager", "transformers, eager"), ("compiled", "under torch.compile"))
        if f"{row}_ms" in config
    }
    against = [row for row in ("all", "compiled") if row in rows[0]["speedup"]]
    titles = {"all": "against everything", "compiled": "against torch.compile"}
    return [
        f"`{name}` (layers: {layers}); "
        + ", ".join(f"{words} {ms:.1f} ms" for words, ms in libraries.items())
        + ":",
        "",
        "| what is new | ms | engine calls | GFLOP | "
        + " | ".join(titles[row] for row in against)
        + " | actions off by |",
        "|---|" + "---:|" * (4 + len(against)),
        *(
            f"| {KINDS.get(row['kind'], '`' + row['kind'] + '`')} "
            f"| {row['ms']:.1f} ({row['p99_ms']:.1f}) | {row['stages']} "
            f"| {sum(row['gflops'].values()):.3g} | "
            + " | ".join(f"{row['speedup'][other]:.2f} x" for other in against)
            + f" | {row['error']:.1e} |"
            for row in rows
        ),
    ]


def _leaves(rows: Sequence[Figures]) -> list[str]:
    return [
        "| leaf, asked for behind a tick | ms | of a usual tick | GFLOP |",
        "|---|---:|---:|---:|",
        *(
            f"| `{row['leaf']}` | {row['ms']:.2f} ({row['p99_ms']:.2f}) "
            f"| {100 * row['of_a_tick']:.1f} % | {sum(row['gflops'].values()):.3g} |"
            for row in rows
        ),
    ]
