"""Published numbers: every table in the README is rendered from `docs/results/*.json`.

python -m export results        render them again
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

BEGIN, END = "<!-- results -->", "<!-- end of results -->"
WORDS = {
    "eager": "transformers + UniCeption + diffusers, eager",
    "compiled": "the same under torch.compile",
    "reference": "our torch reference",
    "uncached": "our runtime, every input changed",
    "warm": "**our runtime, anchor kept**",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class ResultsConfig:
    """Render the README's tables from the files in docs/results."""

    results: Path = Path("docs/results")
    """Folder of JSON files, as `python -m export bench --results` writes them."""

    readme: Path = Path("README.md")
    """File whose marked section is rendered."""


def update(config: ResultsConfig) -> None:
    """Put the rendered tables into the README."""
    text = config.readme.read_text()
    config.readme.write_text(place(text, render(config.results)))


def place(text: str, tables: str) -> str:
    """`text` with the section between the markers replaced.

    Raises:
        ValueError: if the markers are not there, once and in order.
    """
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        raise ValueError(f"the text must hold {BEGIN!r} and {END!r}, once and in this order")
    before, rest = text.split(BEGIN)
    return f"{before}{BEGIN}\n{tables}{END}{rest.split(END)[1]}"


def render(folder: Path) -> str:
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
        + f"{machine['power_mode']}. Camera image to action chunk, float32, median (p99) in ms of "
        + ", ".join(f"{sizes[n]['rounds']} ticks ({n})" for n in names)
        + ", rows interleaved.",
        "",
        "| | " + " | ".join(names) + " |",
        "|---|" + "---:|" * len(names),
    ]
    for row, words in WORDS.items():
        lines.append(f"| {words} | " + " | ".join(_cell(sizes[n], row) for n in names) + " |")
    extra = {
        "warm tick against every input changed": lambda s: f"{s['warm_speedup']:.2f} x",
        "warm tick against its roofline here": lambda s: f"{s['times_roofline']:.2f} x",
        "outside engines, warm, ms": lambda s: f"{s['overhead_ms']:.2f}",
        "of these host functions (image, state), ms": lambda s: f"{s['host_functions_ms']:.2f}",
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
