"""What the demo policy does in closed loop that has something to remember.

The shipped checkpoint as a float32 bundle on the task whose goal shows in mid-episode only: with
its memory, with a memory of the first frame alone, and with everything recomputed at every tick.
All on the same seeds.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from device_tests.success.__main__ import STRIPS, machine
from device_tests.success.episodes import Evaluation, Row
from device_tests.success.pictures import write_film, write_sheet
from export.evidence.config import BLINK_OPTIONS, RECALL, RecallConfig
from export.evidence.success import float32_bundle, run_kept, same_bits
from models.checkpoint import load_checkpoint
from runtime.robots.metaworld import TASKS
from runtime.storage.files import PICTURE, Kind, check_output, write_file

TABLE = Kind("a table of what a memory is worth", (b'"machine"', b'"without"'))


def measure(config: RecallConfig) -> Path:
    """Run all rows; a run that was cut off goes on where it was.

    Returns:
        The JSON file that was written.
    """
    path = config.results / RECALL
    for output, kind in ((path, TABLE), (config.film, PICTURE)):
        check_output(output, kind)
    bundle = float32_bundle(config.checkpoint, config.work / "bundle", BLINK_OPTIONS)
    run = partial(run_kept, config, (bundle,), (config.task,))
    given = run(num_strips=STRIPS)
    without = run(forgetful=True)
    cold = run(cold=True, episodes=-(-config.episodes // 4))
    blink = TASKS[config.task].blink
    result = {
        "machine": machine(),
        "weights": load_checkpoint(config.checkpoint).config.description,
        "task": config.task,
        "episodes": config.episodes,
        "seed0": config.seed0,
        "num_markers": None if blink is None else blink.num_markers,
        "with": _row(given, config.task, bundle),
        "without": _row(without, config.task, bundle),
        "cold": same_bits(given.results[bundle], cold.results[bundle]),
    }
    write_film(given.strips, config.film)
    write_sheet(given.strips, config.work / "sheet.png")
    write_file(path, json.dumps(result, indent=1) + "\n", TABLE)
    print(path)
    return path


def _row(evaluation: Evaluation, task: str, bundle: Path) -> dict[str, Any]:
    row: Row = evaluation.rows[task][bundle]
    return asdict(row.rate) | {"median_steps": row.median_steps}
