"""What the demo policy does in closed loop: every success rate in README and model card.

The shipped checkpoint as a float32 bundle, beside the torch reference, other training seeds and a
policy that was trained without an anchor; with the anchor taken away or exchanged; told another
instruction than the scene's own. All on the same seeds.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from device_tests.success.__main__ import STRIPS, machine
from device_tests.success.episodes import EpisodeResult, Evaluation, Row, SuccessConfig
from device_tests.success.pictures import write_film, write_sheet
from export.build import build
from export.config import DEMO_OPTIONS, RESULT, BuildConfig, SuccessTableConfig
from export.evidence.config import RecallConfig
from export.evidence.kept_episodes import evaluate_kept
from export.evidence.reference_policy import ReferencePolicy
from models.checkpoint import load_checkpoint
from models.demo import EPISODES
from models.demo.config import DEMO_TASKS
from runtime import load
from runtime.recordings.recording import FRAME, STATE, load_recording
from runtime.robots.metaworld import TASKS
from runtime.storage.files import PICTURE, Kind, check_output, write_file

RATES = Kind("a table of success rates", (b'"machine"', b'"rows"', b'"recorded_error"'))
MEMORY_TASKS = tuple(t for t in DEMO_TASKS if TASKS[t].hide_marker_after_first_frame)


def measure(config: SuccessTableConfig) -> Path:
    """Run all rows; about half an hour on two cores. A run that was cut off goes on where it was.

    Returns:
        The JSON file that was written.
    """
    path = config.results / RESULT
    for output, kind in ((path, RATES), (config.film, PICTURE)):
        check_output(output, kind)
    bundle = _bundle(config, config.checkpoint, "shipped")
    in_use = {"anchor kept": bundle, "torch reference": config.checkpoint}
    for number, path in enumerate(config.seeds):
        in_use[f"trained with {_training_seed(path)}"] = _bundle(config, path, f"seed{number}")
    given = run_kept(config, tuple(in_use.values()), DEMO_TASKS, num_strips=STRIPS)
    rows = {words: _rates(given, policy) for words, policy in in_use.items()}
    for words, anchor in (("current frame as anchor", "current"), ("wrong anchor", "wrong")):
        rows[words] = _rates(run_kept(config, (bundle,), MEMORY_TASKS, anchor=anchor), bundle)
    if config.without_anchor is not None:
        blind = _bundle(config, config.without_anchor, "without-anchor")
        words = "trained without an anchor"
        rows[words] = _rates(run_kept(config, (blind,), DEMO_TASKS, anchor="current"), blind)
    cold = run_kept(config, (bundle,), DEMO_TASKS, cold=True, episodes=-(-config.episodes // 4))
    result = {
        "machine": machine(),
        "weights": load_checkpoint(config.checkpoint).config.description,
        "episodes": config.episodes,
        "seed0": config.seed0,
        "rows": rows,
        "cold": same_bits(given.results[bundle], cold.results[bundle]),
        "recorded_error": _recorded_error(config.checkpoint, bundle),
        "instructions": _instructions(config, bundle, given),
    }
    write_film(given.strips, config.film)
    write_sheet(given.strips, config.work / "sheet.png")
    write_file(path, json.dumps(result, indent=1) + "\n", RATES)
    print(path)
    return path


def _training_seed(checkpoint: Path) -> str:
    """As `models.demo.train` notes it: "seed 1"."""
    found = re.search(r"seed \d+", load_checkpoint(checkpoint).config.description)
    return found[0] if found else str(checkpoint)


def _bundle(config: SuccessTableConfig, checkpoint: Path, name: str) -> Path:
    return float32_bundle(checkpoint, config.work / name, DEMO_OPTIONS)


def float32_bundle(checkpoint: Path, out: Path, options: Mapping[str, Any]) -> Path:
    """Export a small policy."""
    return build(
        BuildConfig(
            recipe="float32", checkpoint=checkpoint, out=out, compile_check=False, **options
        )
    )


def run_kept(
    config: SuccessTableConfig | RecallConfig,
    policies: Sequence[Path],
    tasks: tuple[str, ...],
    num_strips: int = 0,
    **options: Any,
) -> Evaluation:
    """Policies on the same seeds."""
    what = SuccessConfig(
        bundles=tuple(policies), tasks=tasks, episodes=options.pop("episodes", config.episodes),
        seed0=config.seed0, **options,
    )  # fmt: skip
    return evaluate_kept(config.work, what, num_strips=num_strips)


def _rates(evaluation: Evaluation, policy: Path) -> dict[str, Any]:
    """Per task and for their mean: successes, n, 95 % interval; against the first policy."""
    return {name: _cell(rows[policy]) for name, rows in evaluation.rows.items()}


def _cell(row: Row) -> dict[str, Any]:
    against = row.against_first
    return asdict(row.rate) | ({} if against is None else {"against_first": asdict(against)})


def same_bits(warm: Sequence[EpisodeResult], cold: Sequence[EpisodeResult]) -> dict[str, int]:
    """How many of the recomputed episodes have the same chunks to the bit."""
    digests = {(r.task, r.seed): r.digest for r in warm}
    same = sum(digests[r.task, r.seed] == r.digest for r in cold)
    return {"same": same, "n": len(cold)}


def _recorded_error(checkpoint: Path, bundle: Path) -> float:
    """Largest difference between reference and runtime on the recorded episodes, robot units."""
    policy, oracle = load(bundle), ReferencePolicy(load_checkpoint(checkpoint))
    worst = 0.0
    for path in sorted(EPISODES.glob("*.npz")):
        seen = load_recording(path)
        images, states = (seen.streams[name].values for name in (FRAME, STATE))
        start = {"anchor": images[0], "instruction": seen.instruction, "seed": seen.seed}
        ours, theirs = policy.start(**start), oracle.start(**start)
        for image, state in zip(images, states, strict=True):
            now = {"frame": image, "state": state}
            difference = ours.act(now).actions - theirs.act(now).actions
            worst = max(worst, float(np.abs(difference).max()))
    return worst


def _instructions(
    config: SuccessTableConfig, bundle: Path, given: Evaluation
) -> dict[str, dict[str, dict[str, int]]]:
    """Per instruction and scene: episodes that touch the marker that the instruction names, and
    those that touch the scene's own, of a quarter of the seeds."""
    episodes = -(-config.episodes // 4)
    table: dict[str, dict[str, dict[str, int]]] = {told: {} for told in MEMORY_TASKS}
    for scene in MEMORY_TASKS:
        own = [r.success for r in given.results[bundle] if r.task == scene][:episodes]
        table[scene][scene] = {"named": sum(own), "own": sum(own), "n": episodes}
    for told in MEMORY_TASKS:
        others = tuple(task for task in MEMORY_TASKS if task != told)
        evaluation = run_kept(config, (bundle,), others, instruction=told, episodes=episodes)
        for scene in others:
            results = [r for r in evaluation.results[bundle] if r.task == scene]
            table[told][scene] = {
                "named": sum(bool(r.other_success) for r in results),
                "own": sum(r.success for r in results),
                "n": episodes,
            }
    return table
