"""python -m device_tests.success BUNDLE [BUNDLE ...]

How often does a bundle solve its tasks, in closed loop on the simulator?

Episode i of a task has seed `seed0 + i`, which fixes goals, objects and action noise alike, so that
bundles (and runs with other options) are compared in pairs. Seeds from 10000 on are for evaluation;
training uses lower ones. Nothing waits for a clock: the robot stands still while a policy thinks.

example: python -m device_tests.success bundle --tasks touch-red --json success.json

Exit codes are those of `anchorvla`: 0 done whatever the success was, 2 wrong usage, 3 bundle,
4 observation, 5 engine, 6 robot or simulator, 8 output that cannot be written, 130 interrupted.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Callable
from dataclasses import MISSING, asdict, dataclass, fields
from importlib import metadata
from pathlib import Path
from typing import Any, get_args

import runtime
from device_tests.provenance import read_commit
from device_tests.success.episodes import (
    AnchorKind,
    EpisodeResult,
    Evaluation,
    Row,
    SuccessConfig,
    evaluate,
)
from device_tests.success.motion import FIGURES
from device_tests.success.pictures import write_film, write_sheet
from runtime.cli.command import finish, wants_debug
from runtime.cli.progress import PERIOD_S
from runtime.control.delay import Chunks
from runtime.pages.report import processor_name
from runtime.robots.metaworld import TASKS
from runtime.storage.files import PICTURE, Kind, check_output, write_file

RESULT = Kind("a table of success rates", (b'"machine"', b'"bundles"'))
KINDS = {"json": RESULT, "sheet": PICTURE, "film": PICTURE}
"""Of the files in `Outputs`."""
STRIPS = 4
"""Episodes per task on the contact sheet."""
LISTS = ("bundles", "tasks")
PACKAGES = ("numpy", "onnxruntime", "metaworld", "mujoco")


@dataclass(frozen=True, kw_only=True, slots=True)
class Outputs:
    """Files to write, if any."""

    json: Path | None
    sheet: Path | None
    film: Path | None


def write_table(evaluation: Evaluation) -> str:
    """The evaluation as text."""
    width = max(len(str(bundle)) for bundle in evaluation.config.bundles)
    lines = [_heading(evaluation.config)]
    for name, rows in evaluation.rows.items():
        lines += ["", name]
        lines += [f"  {str(bundle):<{width}}  {_row_words(row)}" for bundle, row in rows.items()]
    return "\n".join(lines)


def write_json(evaluation: Evaluation, seconds: float) -> str:
    """The evaluation with every episode, and where it ran."""
    bundles: dict[str, object] = {}
    for bundle in evaluation.config.bundles:
        manifest = runtime.read_bundle(bundle).manifest
        bundles[str(bundle)] = {
            "weights": manifest.description,
            "source_sha256": manifest.source_sha256,
            "recipe": manifest.recipe.name,
            "rows": {name: asdict(rows[bundle]) for name, rows in evaluation.rows.items()},
            "episodes": [asdict(result) for result in evaluation.results[bundle]],
        }
    config = asdict(evaluation.config) | {"bundles": list(bundles)}
    document = {"machine": machine(), "seconds": round(seconds, 1), "config": config}
    return json.dumps(document | {"bundles": bundles}, indent=1) + "\n"


def main(arguments: list[str] | None = None) -> int:
    """Evaluate; errors that a user can mend become one line and an exit code."""
    return finish(lambda: _main(arguments), debug=wants_debug(arguments))


def _main(arguments: list[str] | None) -> None:
    options = vars(_parser().parse_args(arguments))
    options.pop("debug")
    outputs = Outputs(**{f.name: options.pop(f.name) for f in fields(Outputs)})
    settings: dict[str, Any] = {n: tuple(v) if n in LISTS else v for n, v in options.items()}
    _evaluate_and_write(SuccessConfig(**settings), outputs)


def _evaluate_and_write(config: SuccessConfig, outputs: Outputs) -> None:
    for name, kind in KINDS.items():
        if (path := getattr(outputs, name)) is not None:
            check_output(path, kind)
    for bundle in config.bundles:
        runtime.read_bundle(bundle)  # a wrong path is found before the processes start
    begin = time.monotonic()
    evaluation = evaluate(
        config,
        num_strips=STRIPS if outputs.sheet or outputs.film else 0,
        on_episode=show_progress(len(config.bundles) * len(config.tasks) * config.episodes),
    )
    print(write_table(evaluation))
    if outputs.json is not None:
        write_file(outputs.json, write_json(evaluation, time.monotonic() - begin), RESULT)
        print(f"\njson: {outputs.json}")
    if outputs.sheet is not None:
        write_sheet(evaluation.strips, outputs.sheet)
        print(f"sheet: {outputs.sheet}")
    if outputs.film is not None:
        write_film(evaluation.strips, outputs.film)
        print(f"film: {outputs.film}, {outputs.film.stat().st_size / 1e6:.1f} MB")


def show_progress(total: int) -> Callable[[EpisodeResult], None]:
    """On standard error: a bar where somebody watches, a line now and then elsewhere."""
    begin, num_done, num_successes = time.monotonic(), 0, 0
    told, is_watched = begin, sys.stderr.isatty()

    def show(result: EpisodeResult) -> None:
        nonlocal num_done, num_successes, told
        num_done += 1
        num_successes += result.success
        elapsed_s = time.monotonic() - begin
        remaining_s = elapsed_s / num_done * (total - num_done)
        line = (
            f"{num_done} of {total} episodes, {num_successes} succeeded, "
            f"{_minutes(elapsed_s)} elapsed, {_minutes(remaining_s)} left"
        )
        if is_watched:
            bar = f"[{'#' * (10 * num_done // total):<10}]"
            end = "" if num_done < total else "\n"
            print(f"\r{f'{bar} {line}':<79}", end=end, file=sys.stderr, flush=True)
        elif num_done == total or time.monotonic() - told >= PERIOD_S:
            told = time.monotonic()
            print(line, file=sys.stderr, flush=True)

    return show


def _heading(config: SuccessConfig) -> str:
    last = config.seed0 + config.episodes - 1
    words = f"{config.episodes} episodes per task, seeds {config.seed0} to {last}, "
    words += f"{config.execute} actions per thought, anchor: {config.anchor}"
    if config.instruction is not None:
        words += f', instruction: "{TASKS[config.instruction].instruction}"'
    if config.delay_steps:
        words += f", {config.chunks} with thoughts of {config.delay_steps} control steps"
    words += ", nothing remembered but the first frame" if config.forgetful else ""
    return words + (", everything recomputed" if config.cold else "")


def _row_words(row: Row) -> str:
    rate, steps = row.rate, "-" if row.median_steps is None else f"{row.median_steps:g}"
    words = f"{rate.successes:>4} of {rate.n:<4} {100 * rate.successes / rate.n:5.1f} %  "
    words += f"[{100 * rate.low:5.1f}, {100 * rate.high:5.1f}]  {steps:>5} steps"
    if row.other_successes is not None:
        words += f", the other task {row.other_successes}"
    if row.against_first is not None:
        c = row.against_first
        words += f"  {100 * c.difference:+.1f} points [{100 * c.low:+.1f}, {100 * c.high:+.1f}], "
        words += f"{c.only_this} won, {c.only_first} lost, p = {c.p:.3g}"
    return words + _motion_words(row)


def _motion_words(row: Row) -> str:
    """A line more, where the robot tells what its actions command."""
    if row.motion_against_first is not None:
        found = row.motion_against_first.figures
        return "\n    motion, times the first: " + ", ".join(
            f"{words} {found[name].ratio:.2f} [{found[name].low:.2f}, {found[name].high:.2f}]"
            for name, words in FIGURES.items()
        )
    if row.motion is not None:
        means = asdict(row.motion)
        return "\n    motion: " + ", ".join(f"{w} {means[n]:.3g}" for n, w in FIGURES.items())
    return ""


def _minutes(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02}"


def machine() -> dict[str, object]:
    return {
        "processor": processor_name(),
        "threads": len(os.sched_getaffinity(0)),
        "date": time.strftime("%Y-%m-%d"),
        "commit": read_commit(),
        "python": platform.python_version(),
        "versions": {name: metadata.version(name) for name in PACKAGES},
    }


def _parser() -> argparse.ArgumentParser:
    """Options that are left out are missing from the result: the defaults are `SuccessConfig`'s."""
    parser = argparse.ArgumentParser(
        prog="python -m device_tests.success",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        argument_default=argparse.SUPPRESS,
    )
    default = {f.name: f.default for f in fields(SuccessConfig) if f.default is not MISSING}
    add = parser.add_argument
    add("bundles", type=Path, nargs="+", metavar="BUNDLE")
    add("--tasks", nargs="+", help=f"of {', '.join(TASKS)} (default all without a blink)")
    add("--episodes", type=int, help=f"per task (default {default['episodes']})")
    add("--seed0", type=int, help=f"of the first episode (default {default['seed0']})")
    add("--execute", type=int, help=f"actions per thought (default {default['execute']})")
    add(
        "--anchor",
        choices=get_args(AnchorKind),
        help="the first frame (default), the current one at every thought, or a wrong one: the "
        "first frame of seed + 1",
    )
    add("--instruction", metavar="TASK", help="give the instruction of this task in every task")
    add("--cold", action="store_true", help="recompute everything at every thought")
    add(
        "--forgetful",
        action="store_true",
        help="remember nothing but the first frame from one thought to the next",
    )
    add(
        "--chunks",
        choices=get_args(Chunks),
        help="wait for every chunk (sync, the default), or think out the next one meanwhile",
    )
    add("--delay-steps", type=int, help="control steps that a thought takes (default 0)")
    add("--jobs", type=int, help="processes of one thread each (default all cores)")
    add("--json", type=Path, default=None, help="write everything here")
    add("--sheet", type=Path, default=None, help="write a PNG with frames of the first bundle")
    add("--film", type=Path, default=None, help="write a GIF with an episode of each task")
    add("--debug", action="store_true", default=False, help="show the traceback of an error")
    return parser


if __name__ == "__main__":
    sys.exit(main())
