"""What an export measured, as pieces of its page: stages, denoise steps, islands, studies.

Each piece is always there. Where something was not measured, it says so and how to come by it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from export.errors import ExportError
from export.page.meters import METER_DECADES, NEAR, bar, columns_svg, meter, number, percent
from quant.formats import FLOAT16_MAX
from quant.search.pictures import Dot, heat_map_svg, pareto_svg
from quant.search.yardsticks import THEIRS, Yardstick
from runtime.bundle import Manifest, StageFigures
from runtime.pages.markup import Markup
from runtime.pages.page import Column, chart, sentence, table

SHOWN_ISLANDS = 30
COST_UNITS = {"ms": "ms of a warm tick", "share": "share of the bytes that float32 reads"}
Shown = tuple[str, Callable[[StageFigures], str]]
"""A column of the table of stages."""


@dataclass(frozen=True, slots=True)
class Study:
    """What a sensitivity search found, as far as it is drawn."""

    errors: Mapping[str, Mapping[str, float]]
    """Of the actions, per group of layers and format."""
    dots: Sequence[Dot]
    chosen: int
    noise_spread: float
    x_title: str
    weights_sha256: str
    num_observations: int


def read_study(path: Path) -> Study:
    """Read the recipe.json of `make sensitivity`.

    Raises:
        ExportError: no such file.
    """
    try:
        raw = json.loads(path.read_text())
        (unit,) = raw["budget"]
        return Study(
            errors={
                group: {kind: float(error) for kind, error in row.items() if kind != "float"}
                for group, row in raw["sensitivity"].items()
            },
            dots=[Dot(s["step"], s[unit], s["predicted"], s["measured"]) for s in raw["path"]],
            chosen=raw["path"].index(raw["measured"]),
            noise_spread=float(raw["noise_spread"]),
            x_title=f"{COST_UNITS[unit]}, {raw['board']}, shapes: {raw['tick']['shapes']}",
            weights_sha256=raw["source"]["sha256"],
            num_observations=int(raw["source"]["num_observations"]),
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ExportError(
            f"{path}: not a sensitivity study ({error!r}); make sensitivity writes one"
        ) from None


def show_stages(manifest: Manifest) -> list[Markup]:
    """Every stage's errors, and how near they are to what is allowed."""
    stages = manifest.quantization.stages
    if not stages:
        return [sentence("The manifest holds no figures of stages: export the bundle again.")]
    groups, words = _stage_columns(manifest, stages)
    shown = [column for columns in groups.values() for column in columns]
    head = [Column("stage", "name"), *(Column(title) for title, _ in shown)]
    rows = [[name, *(show(figures) for _, show in shown)] for name, figures in stages.items()]
    spans = [("", 1), *((title, len(columns)) for title, columns in groups.items())]
    explained = (
        "Relative errors of a stage's worst output, given exact inputs: norm of the difference "
        f"over the norm. {words} Bars are logarithmic: full at the limit, empty at "
        f"{10.0**-METER_DECADES:.0%} of it, and amber from {NEAR:.0%}."
    )
    return [table(head, rows, groups=spans), sentence(explained)]


def _stage_columns(
    manifest: Manifest, stages: Mapping[str, StageFigures]
) -> tuple[dict[str, list[Shown]], str]:
    """Columns by what they are about, and what has to be said about those that are missing."""
    base, tolerance = manifest.recipe.base, manifest.recipe.tolerance
    groups: dict[str, list[Shown]] = {
        "export": [
            ("parity", lambda s: number(s.parity)),
            ("of the limit", lambda s: meter(s.parity, s.parity_allowed or tolerance)),
        ]
    }
    words = f"Parity may be {number(tolerance)}, more where rounding alone moves a stage to other "
    words += "codes; the floor is what bfloat16 alone does."
    floor: Shown = ("bfloat16 floor", lambda s: number(s.noise_floor))
    if any(s.allowed for s in stages.values()):
        groups["quantization"] = [
            ("error", lambda s: number(s.error)),
            floor,
            ("times floor", lambda s: _times(s.error, s.noise_floor)),
            ("allowed", lambda s: number(s.allowed)),
            ("of the limit", lambda s: meter(s.error, s.allowed)),
        ]
    else:
        groups["for comparison"] = [floor]
        words += " The recipe quantizes no layer, so no stage has an error to be judged."
    if any(s.rounding is not None for s in stages.values()):
        groups[f"lowering to {base}"] = [
            ("error", lambda s: number(s.rounding)),
            ("allowed", lambda s: number(s.rounding_allowed)),
            ("of the limit", lambda s: meter(s.rounding, s.rounding_allowed)),
        ]
    else:
        words += f" The base format is {base}: no engine was lowered, so nothing rounds."
    return groups, words


def show_denoise_steps(manifest: Manifest) -> list[Markup]:
    """What each step alone does to the result."""
    stages = manifest.quantization.stages
    finals = {name: s.final for name, s in stages.items() if s.final is not None}
    if not finals:
        return [sentence("The manifest holds no figures of denoise steps.")]
    if not any(finals.values()):
        words = f"None of the {len(finals)} denoise steps is quantized, so none moves the actions."
        return [sentence(words)]
    worst = max(finals, key=lambda name: finals[name])
    chart = columns_svg(
        {name.rsplit("_", 1)[-1]: error for name, error in finals.items()},
        title="relative error of what the last step leaves",
        x_title="denoise step",
    )
    words = (
        "Each step alone in the recipe's precision, all others in float32; the scale is "
        f"logarithmic. The most sensitive is {worst}: {number(finals[worst])}."
    )
    return [chart, sentence(words)]


def show_islands(manifest: Manifest) -> list[Markup]:
    """Tensors of a float16 export that stay float32."""
    if (base := manifest.recipe.base) != "float16":
        words = (
            f"None: the base format is {base}. Islands are tensors that float16 cannot hold, and "
            "only a recipe with float16 has to look for them."
        )
        return [sentence(words)]
    found = [
        (largest, engine, tensor)
        for engine, tensors in manifest.quantization.islands.items()
        for tensor, largest in tensors.items()
    ]
    if not found:
        return [sentence("None: in calibration no tensor came near the end of float16's range.")]
    found.sort(key=lambda island: -island[0])
    head = [
        Column("engine", "name"), Column("tensor", "words"), Column("largest magnitude"),
        Column("of float16's range"),
    ]  # fmt: skip
    rows = [
        (engine, tensor, f"{largest:,.0f}", percent(largest, FLOAT16_MAX))
        for largest, engine, tensor in found[:SHOWN_ISLANDS]
    ]
    words = f"Kept in float32: they come near the end of float16's range, {FLOAT16_MAX:,.0f}."
    if left_out := len(found) - len(rows):
        words += f" {left_out} more are smaller and not shown; the manifest lists them."
    return [table(head, rows), sentence(words)]


def show_sensitivity(manifest: Manifest, path: Path | None) -> list[Markup]:
    """The search's path and the errors of its groups.

    Raises:
        ExportError: see `read_study`.
    """
    if path is None:
        words = (
            "No study was given. make sensitivity measures what every group of layers costs in "
            "every format; export with --sensitivity and its recipe.json to see it here."
        )
        return [sentence(words)]
    study = read_study(path)
    words = (
        "Relative errors of the actions against float32, root mean square over "
        f"{study.num_observations} observations."
    )
    if study.weights_sha256 != manifest.source_sha256:
        words = f"Measured on other weights, {study.weights_sha256[:16]}. {words}"
    path_svg = pareto_svg(
        study.dots, study.chosen, x_title=study.x_title, spread=study.noise_spread
    )
    map_svg = heat_map_svg(study.errors, title="Action error of one group quantized alone")
    return [chart(path_svg), chart(map_svg), sentence(words)]


def show_yardsticks(found: Sequence[Yardstick]) -> list[Markup]:
    """Accuracy beside bytes, the smallest first."""
    if not found:
        words = (
            "Not measured. Where a recipe quantizes, the project's formats stand here beside those "
            "of bitsandbytes."
        )
        return [sentence(words)]
    head = [
        Column("format", "name"), Column("layers"), Column("bytes per weight"),
        Column("error of a product"), Column("", "name"),
    ]  # fmt: skip
    largest = max(stick.error for stick in found) or 1.0
    rows = [
        (stick.name, str(stick.num_layers), f"{stick.bytes_per_weight:.3f}", number(stick.error),
         bar(stick.error / largest, "theirs" if stick.name in THEIRS else "ours"))
        for stick in sorted(found, key=lambda stick: (stick.bytes_per_weight, stick.error))
    ]  # fmt: skip
    words = (
        "Errors of this policy's linear layers, relative, root mean square over the layers, on "
        "sampled inputs that had no part in choosing scales or codes. Bytes are codes, float32 "
        "scales and padding. Amber: as bitsandbytes computes it."
    )
    return [table(head, rows), sentence(words)]


def _times(value: float | None, floor: float | None) -> str:
    return "-" if value is None or not floor else f"{value / floor:.1f}"
