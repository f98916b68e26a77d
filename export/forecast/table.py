"""A forecast in the terminal, and as files: a table, a JSON line, a page."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table
from rich.text import Text

from export.forecast.config import ForecastConfig
from export.forecast.forecast import Forecast, forecast
from export.forecast.page import page
from export.forecast.stages import StageCost
from export.forecast.words import band_words, cells, counted, header, summary
from runtime.storage.files import PAGE, check_output, write_file

COLUMNS = ("stage", "GFLOP", "used", "weights", "ports", "FLOP/B", "ms", "runs")


def print_forecast(asked: ForecastConfig) -> Forecast:
    """Print it, one JSON line last, and write the page.

    Raises:
        ValueError: see `forecast`.
    """
    name = asked.checkpoint.resolve().name if asked.checkpoint else asked.config
    path = asked.out / f"{name.replace('/', '-')}-{asked.recipe}-{asked.board_name}.html"
    check_output(path, PAGE)
    made = forecast(asked)
    console = Console()
    console.print(_table(made))
    for line in (header(made), *summary(made), band_words()):
        console.print(line, soft_wrap=True, markup=False, highlight=False)
    write_file(path, page(made), PAGE)
    console.print(f"written: {path}", soft_wrap=True, markup=False, highlight=False)
    print(made.to_json())
    return made


def _runs(stage: StageCost) -> str:
    """What it waits for, in a word or two."""
    if not stage.needs:
        return "load"
    return " ".join(sorted(stage.needs)) if stage.is_kept else "tick"


def _table(made: Forecast) -> Table:
    title = f"{made.policy.name} on {made.board_name}, recipe {made.recipe.name}: forecast"
    caption = "used: not padding; weights and ports in MB; ms by the roofline"
    table = Table(title=Text(title), title_justify="left", caption=caption, caption_justify="left")
    for column in COLUMNS:
        words = column in ("stage", "runs")
        table.add_column(column, justify="left" if words else "right")
    for stage in made.stages:
        name = counted(stage.name, stage.cost.calls)
        table.add_row(name, *cells(stage.cost), _runs(stage))
    table.add_section()
    table.add_row("warm tick", *cells(made.warm), "")
    table.add_row("cold tick", *cells(made.cold), "")
    table.add_section()
    for leaf in made.leaves:
        table.add_row(counted(leaf.name, leaf.cost.calls), *cells(leaf.cost), "asked")
    return table
