"""Which format each group of layers should have, by measurement: what a recipe.json comes from.

Goes in: a policy, recorded observations and a budget. Every group is quantized alone and the policy
run; from the errors comes a path of recipes, which are run as well. Comes out: the recipe within
the budget, with all that was found, and pictures beside it. The trade-off: it can take hours, and
nothing is written before the end.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from models.checkpoint import Checkpoint, load_checkpoint
from models.families import CONFIGS, family_of
from models.family import layer_names
from quant.boards import find_board
from quant.config import SensitivityConfig
from quant.data.observations import misfit, read_observations
from quant.recipes import Format
from quant.search.pictures import Dot, heat_map_svg, pareto_svg, short
from quant.search.sensitivity import (
    CANDIDATES,
    Errors,
    Point,
    Trial,
    group_layers,
    make_recipe,
    measure,
    measure_layers,
    search,
)
from quant.targets import Costs, tick_costs, tick_products
from runtime.cli.progress import Progress as Lines
from runtime.image import grid_of
from runtime.pages.svg import standalone
from runtime.storage.files import DRAWING, Kind, check_output, write_file

FOUND = Kind("the result of a sensitivity search", (b'"recipe"', b'"noise_spread"'))
PICTURES = ("pareto.svg", "heat-map.svg", "layers.svg")
LAYER_FORMAT: Format = "w4"
"""Of the picture by single layers: the one that shows differences best."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Study:
    """What was found."""

    errors: Errors
    layers: Mapping[str, Mapping[str, float]]
    points: Sequence[Point]
    measured: Sequence[float]
    """Action error of each point."""
    chosen: int
    noise_spread: float
    num_observations: int
    """Errors were measured on."""


def sensitivity(config: SensitivityConfig, console: Console | None = None) -> Path:
    """Do what `SensitivityConfig` says; returns the recipe's file.

    Raises:
        CheckpointError: the checkpoint cannot be used.
        ValueError: the episodes cannot be used, or the budget cannot be met.
    """
    console = console or Console()
    file = config.out / "recipe.json"
    check_output(file, FOUND)
    for name in PICTURES:
        check_output(config.out / name, DRAWING)
    checkpoint = load_checkpoint(config.checkpoint)
    costs = _costs(config, checkpoint)
    # Whether the budget can be met does not depend on errors; measuring them can take hours.
    search(
        {group: dict.fromkeys(CANDIDATES, 0.0) for group in costs[config.unit]},
        costs[config.unit],
        config.budget,
    )
    study = _study(config, checkpoint, costs[config.unit], console)
    steps = _steps(study, costs)
    write_file(file, _write_json(_report(config, checkpoint, study, steps)), FOUND)
    for name, picture in _pictures(config, study, steps).items():
        write_file(config.out / name, picture, DRAWING)
    _print_tables(console, study, costs, steps[study.chosen], file)
    return file


def _costs(config: SensitivityConfig, checkpoint: Checkpoint) -> dict[str, Costs]:
    """By unit of the budget: of every group in every format, in a warm tick."""
    shapes = checkpoint.config if config.shapes is None else CONFIGS[config.shapes]()
    width, height = config.image_size
    grid = grid_of(height, width, checkpoint.image)
    with torch.device("meta"):
        groups = group_layers(family_of(shapes).model(shapes))
    products = tick_products(groups, shapes, grid, config.tokens)
    return tick_costs(products, find_board(config.board), CANDIDATES)


def _study(
    config: SensitivityConfig, checkpoint: Checkpoint, costs: Costs, console: Console
) -> Study:
    observations = list(
        read_observations(
            config.episodes, stride=config.stride, limit=config.limit, camera=config.camera
        )
    )
    for seen in observations:  # of whatever size: `image_size` is what costs are reckoned for
        sizes = [(v.shape[1], v.shape[0]) for v in seen.now.values() if v.ndim == 3]
        if words := misfit(checkpoint.inputs(next(iter(sizes), config.image_size)), seen):
            raise ValueError(f"{seen.where}: {words}")
    with _progress(console) as progress:
        bar = progress.add_task("calibrate", total=None)

        lines = None if console.is_terminal else Lines(console.file)

        def step(description: str) -> None:
            progress.update(bar, advance=1, description=description)
            if lines is not None:
                lines.step(description)

        trial = Trial(checkpoint, observations)
        num_layers = sum(map(len, trial.layers.values()))
        progress.update(bar, total=len(trial.layers) * (len(CANDIDATES) - 1) + num_layers)
        errors = measure(trial, step=step)
        layers = measure_layers(trial, LAYER_FORMAT, step=step)
        points, chosen = search(errors, costs, config.budget)
        progress.update(bar, total=len(points), completed=0, description="run the recipes")
        measured = []
        for number, point in enumerate(points, 1):
            measured.append(trial.error(make_recipe(point.formats)))
            step(f"run the recipes: {number} of {len(points)}")
        return Study(
            errors=errors,
            layers=layers,
            points=points,
            measured=measured,
            chosen=chosen,
            noise_spread=trial.noise_spread(),
            num_observations=len(trial.measured_on),
        )


def _steps(study: Study, costs: Mapping[str, Costs]) -> list[dict[str, Any]]:
    """The path: what was changed, what the recipe costs, and its predicted and measured error."""
    steps = []
    before = study.points[0].formats
    for point, measured in zip(study.points, study.measured, strict=True):
        changed = [f"{group} {f}" for group, f in point.formats.items() if before[group] != f]
        before = point.formats
        totals = {
            unit: sum(of[group][f] for group, f in point.formats.items())
            for unit, of in costs.items()
        }
        steps.append(
            {"step": ", ".join(changed) or "all in the base format"}
            | {unit: round(total, 4) for unit, total in totals.items()}
            | {"predicted": round(point.predicted, 6), "measured": round(measured, 6)}
        )
    return steps


def _report(
    config: SensitivityConfig,
    checkpoint: Checkpoint,
    study: Study,
    steps: Sequence[Mapping[str, Any]],
) -> dict[str, Any]:
    """What goes into the file; `quant.recipes.read_recipe` reads the first entry."""
    recipe = dataclasses.replace(
        make_recipe(study.points[study.chosen].formats).fitted(layer_names(checkpoint.config)),
        name=config.name,
        target=find_board(config.board).target,
        purpose="time" if config.unit == "ms" else "memory",
    )
    fields = {f.name: getattr(recipe, f.name) for f in dataclasses.fields(recipe)}
    # Whole: what not every policy of the family has may be missing from the next one.
    rules = [
        dataclasses.astuple(rule) if rule.where_there else dataclasses.astuple(rule)[:3]
        for rule in recipe.rules
    ]
    return {
        "recipe": fields | {"rules": rules},
        "measured": steps[study.chosen],
        "noise_spread": round(study.noise_spread, 4),
        "budget": {config.unit: config.budget},
        "board": config.board,
        "tick": {
            "shapes": config.shapes or "of the checkpoint",
            "image_size": config.image_size,
            "tokens": config.tokens,
        },
        "source": {
            "weights": checkpoint.config.description,
            "sha256": checkpoint.sha256,
            "num_observations": study.num_observations,
        },
        "sensitivity": {
            group: {f: round(error, 6) for f, error in row.items()}
            for group, row in study.errors.items()
        },
        "path": steps,
    }


def _write_json(report: Mapping[str, Any]) -> str:
    """Indented, but a list or an object that holds no other on one line."""
    text = json.dumps(report, indent=1)
    return re.sub(r"[\[{][^\[\]{}]*[\]}]", lambda found: " ".join(found[0].split()), text) + "\n"


def _pictures(
    config: SensitivityConfig, study: Study, steps: Sequence[Mapping[str, Any]]
) -> dict[str, str]:
    dots = [
        Dot(step["step"], step[config.unit], step["predicted"], step["measured"]) for step in steps
    ]
    of = f"configuration {config.shapes}" if config.shapes else "the checkpoint's shapes"
    x_title = {
        "ms": f"linear layers of a warm tick ({of}), ms by the roofline of {config.board}",
        "share": f"weights that a warm tick reads ({of}), share of float32's bytes",
    }[config.unit]
    groups = {
        group: {str(f): error for f, error in row.items() if f != "float"}
        for group, row in study.errors.items()
    }
    pictures = {
        "pareto.svg": pareto_svg(dots, study.chosen, x_title=x_title, spread=study.noise_spread),
        "heat-map.svg": heat_map_svg(groups, title="Action error of one group quantized alone"),
        "layers.svg": heat_map_svg(
            study.layers, title=f"Action error of one layer in {LAYER_FORMAT} alone, by its number"
        ),
    }
    return {name: standalone(picture) for name, picture in pictures.items()}


def _print_tables(
    console: Console,
    study: Study,
    costs: Mapping[str, Costs],
    chosen: Mapping[str, Any],
    file: Path,
) -> None:
    table = Table(title=f"action error of one group alone, and what was chosen ({file})")
    for column in ("group", *list(CANDIDATES)[1:], "chosen", "ms", "share"):
        table.add_column(column, justify="left" if column in ("group", "chosen") else "right")
    for group, taken in study.points[study.chosen].formats.items():
        table.add_row(
            group,
            *(short(study.errors[group][f]) for f in list(CANDIDATES)[1:]),
            taken,
            f"{costs['ms'][group][taken]:.2f}",
            f"{costs['share'][group][taken]:.2%}",
        )
    console.print(table)
    console.print(
        f"together: {chosen['ms']:.1f} ms, {chosen['share']:.1%} of float32's bytes; action error "
        f"predicted {short(chosen['predicted'])}, measured {short(chosen['measured'])}; another "
        f"noise seed: {short(study.noise_spread)}"
    )


def _progress(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description:<60}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=console,
        transient=not console.is_terminal,
    )
