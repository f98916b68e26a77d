"""A forecast as one HTML page that needs nothing else."""

from __future__ import annotations

from collections.abc import Iterator

from export.forecast.forecast import Forecast
from export.forecast.roofline import roofline_svg
from export.forecast.stages import Cost
from export.forecast.words import (
    band_words,
    block_words,
    cells,
    counted,
    digits,
    energy_words,
    fit_words,
    gb,
    header,
    other_recipes,
    sentence_of,
    span,
    tick_words,
    when,
)
from runtime.pages.markup import Markup, element
from runtime.pages.page import (
    Column,
    alarm,
    cards,
    chart,
    document,
    facts,
    note,
    section,
    sentence,
    table,
)
from runtime.pages.svg import bars

UNITS = {
    "bandwidth_gb_s": "memory, GB/s",
    "int8_tops": "int8, TOPS",
    "bf16_tflops": "bfloat16, TFLOPS",
    "fp32_tflops": "float32, TFLOPS",
    "fp8_tflops": "FP8, TFLOPS",
    "memory_gb": "memory, GB",
    "power_w": "power, W",
}
"""Figures of a board as people call them."""


def page(made: Forecast) -> str:
    """The whole file."""
    title = f"Forecast: {made.policy.name} on {made.board_name}, recipe {made.recipe.name}"
    parts = [
        sentence(header(made)),
        *([] if not made.missing else [alarm(element("b", "Missing"), *_items(made.missing))]),
        note(band_words()),
        _cards(made),
        section("Roofline", chart(roofline_svg(made)), *map(sentence, _plot_words(made))),
        section("Stages", _stages(made), *map(sentence, _stage_words())),
        section("Ticks", *_ticks(made)),
        section("Memory", *_memory(made)),
        section("Energy", sentence(sentence_of(energy_words(made)))),
        section("The board", _board(made)),
    ]
    return document(title, parts)


def _items(lines: list[str]) -> Iterator[Markup]:
    yield element("ul", *(element("li", line) for line in lines))


def _cards(made: Forecast) -> Markup:
    warm, cold, rate, actions = (
        made.band(made.warm), made.band(made.cold), made.rate_hz, made.actions_hz,
    )  # fmt: skip
    room = made.room
    unknown = "missing"
    found = [
        (unknown if warm is None else f"{span(warm)} ms", f"a tick, {made.kept_for} kept"),
        (unknown if cold is None else f"{span(cold)} ms", "a tick, every input changed"),
        (unknown if rate is None else f"{rate.best:.1f} Hz", "ticks a second at most"),
        (unknown if actions is None else f"{actions.best:.0f} Hz", "actions a second at most"),
        (gb(made.memory.total), "resident memory"),
    ]
    if room is not None:
        found.append((gb(abs(room)), "of memory left" if room >= 0 else "of memory too much"))
    return cards(found)


def _plot_words(made: Forecast) -> Iterator[str]:
    yield (
        "Each stage at its FLOPs for a byte, and at what it would reach by its roofline; the line "
        "below is the band. Its layers have formats of their own and run one after another, so a "
        "stage may lie below the roof of the fastest."
    )


def _stages(made: Forecast) -> Markup:
    columns = [
        Column("stage", "name"), Column("GFLOP"), Column("useful"), Column("weights, MB"),
        Column("ports, MB"), Column("FLOP/B"), Column("roofline, ms"), Column("band, ms"),
        Column("runs", "name"),
    ]  # fmt: skip
    rows = [(counted(s.name, s.cost.calls), *_cells(made, s.cost), when(s)) for s in made.stages]
    rows += [
        (counted(s.name, s.cost.calls), *_cells(made, s.cost), "if asked for") for s in made.leaves
    ]
    return table(columns, rows, total=("a warm tick", *_cells(made, made.warm), ""))


def _stage_words() -> Iterator[str]:
    yield (
        "FLOPs of products with a weight and of attention, two for a multiplication and an "
        "addition; useful are those that no padding takes. Weights with their scales are read anew "
        "by every call. Ports are inputs and outputs of engines, keys and values among them."
    )


def _cells(made: Forecast, cost: Cost) -> list[str]:
    band = made.band(cost)
    return [*cells(cost), "missing" if band is None else span(band)]


def _ticks(made: Forecast) -> Iterator[Markup]:
    ticks = {f"{made.kept_for} kept": made.warm, "every input changed": made.cold}
    bands = {name: made.band(tick) for name, tick in ticks.items()}
    rows = {
        name: {
            "roofline": tick.roofline_ms or 0.0,
            "at best": band.best,
            "at worst": band.worst,
        }
        for (name, tick), band in zip(ticks.items(), bands.values(), strict=True)
        if band is not None
    }
    if rows:
        yield chart(bars(rows, title="A tick with and without the cache", unit="ms"))
    yield sentence(sentence_of(tick_words(made)))
    kept = [stage for stage in made.stages if stage.is_kept and stage.needs]
    names = ", ".join(counted(s.name, s.cost.calls) for s in kept)
    yield sentence(
        f"Kept for as long as the {made.kept_for} stays: {names or 'no engine stage'}, "
        f"{gb(made.kept_bytes)} of tensors; {digits(sum(s.cost.flops for s in kept) / 1e9)} GFLOP "
        "that a warm tick does not do. Host functions, among them the resize of an image, are in "
        "no figure."
    )


def _memory(made: Forecast) -> Iterator[Markup]:
    yield sentence(f"{sentence_of(fit_words(made))} {sentence_of(block_words(made))}")
    memory = made.memory
    yield element("h4", "What stays resident")
    yield facts(
        {
            "weights": gb(memory.weights),
            "tensors of the graph": gb(memory.tensors),
            f"of these for the {made.kept_for}": gb(made.kept_bytes),
            "page-locked on the host": gb(memory.twins),
            "scratch, estimated": gb(memory.scratch),
            "rows of the embedding table": gb(memory.embedding_rows),
            "the table on the disk": f"{gb(made.table_bytes)}, not resident",
        }
    )
    yield element("h4", "Recipes for its GPU")
    columns = [Column("recipe", "name"), Column("resident"), Column("left"), Column("", "name")]
    rows = []
    for name, size in sorted(made.recipes.items(), key=lambda row: row[1]):
        room = made.room_for(name)
        left = "missing" if room is None else ("-" if room < 0 else "") + gb(abs(room))
        fits = "" if room is None else "fits" if room >= 0 else "does not fit"
        rows.append((name, gb(size), left, fits))
    yield table(columns, rows)
    if made.fitting != [made.recipe.name]:
        yield sentence(sentence_of(other_recipes(made)))


def _board(made: Forecast) -> Markup:
    columns = [Column("figure", "name"), Column("value"), Column("source", "words")]
    rows = []
    for name, words in UNITS.items():
        value = getattr(made.board, name)
        source = made.board.sources.get(name, "missing")
        rows.append((words, "missing" if value is None else f"{value:g}", source))
    return table(columns, rows)
