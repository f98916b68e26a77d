"""Training data of the demo policy: scripted experts, disturbed, with few frames per roll-out.

    python -m models.demo.collect --out build/demo-data

A roll-out costs little and a rendered frame much, and what the policy has to learn is where goals
are. So there are many roll-outs, each with its anchor frame and a few frames at random steps. One
`.npz` per task; the same seeds give the same bits.

Axes: E = roll-out, F = frame, T = action of the chunk, A = action dimension, S = state dimension.
"""

from __future__ import annotations

import multiprocessing
import time
from concurrent.futures import ProcessPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from numpy.typing import NDArray

from models.config import demo
from runtime.metaworld import TASKS, MetaWorldRobot

DEMO_TASKS = ("touch-red", "touch-green", "touch-blue", "button-press-topdown")
COLOURS = ("red", "green", "blue")
STEPS_AFTER_SUCCESS = 14
MAX_STEPS = 110
SEEDS_PER_TASK = 1000


@dataclass(frozen=True, kw_only=True, slots=True)
class CollectConfig:
    """How much to collect."""

    out: Path = Path("build/demo-data")
    """Folder for one .npz per task."""

    tasks: tuple[str, ...] = DEMO_TASKS
    """Keys of `runtime.metaworld.TASKS`."""

    rollouts: int = 1500
    """Per task."""

    frames: int = 4
    """Rendered per roll-out besides the anchor; one of them shows step 0 without markers."""

    noise: float = 0.5
    """Standard deviation of the disturbance of the hand, in two of three roll-outs."""

    seed: int = 0
    """Of the first task; each task has a seed of its own, so that no two tasks have one layout.
    Seeds below 10000 are for training; evaluation uses higher ones."""

    def __post_init__(self) -> None:
        if unknown := sorted(set(self.tasks) - TASKS.keys()):
            raise ValueError(f"unknown tasks {unknown}; there are {sorted(TASKS)}")
        if self.rollouts < 1 or not 1 <= self.frames <= 50:
            raise ValueError(
                f"rollouts must be positive and frames in [1, 50], got {self.rollouts}, "
                f"{self.frames}"
            )
        if not 0 <= self.seed < SEEDS_PER_TASK:
            raise ValueError(f"seed must be in [0, {SEEDS_PER_TASK}), got {self.seed}")


def collect(config: CollectConfig) -> None:
    """Collect every task, one process per task."""
    config.out.mkdir(parents=True, exist_ok=True)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(mp_context=context, max_workers=2) as pool:
        for task, line in zip(
            config.tasks, pool.map(_collect_task, [(config, t) for t in config.tasks]), strict=True
        ):
            print(f"{task}: {line}", flush=True)


def rollout(
    robot: MetaWorldRobot, random: np.random.Generator, *, frames: int, noise: float
) -> dict[str, Any]:
    """One disturbed expert roll-out.

    Returns:
        `anchor` [H, W, 3]; `images` [F, H, W, 3], `states` [F, S] and `chunks` [F, T, A] at the
        chosen steps; `goal_m` [3]; `markers_m` [colours, 3], NaN where there is none; `success`.
    """
    anchor = robot.reset().image
    chosen = {0, *random.choice(np.arange(1, 60), frames - 1, replace=False).tolist()}
    horizon = demo().head.prediction_horizon
    images, states, steps, actions = [], [], [], []
    left = STEPS_AFTER_SUCCESS
    for step in range(MAX_STEPS):
        if step in chosen and left > STEPS_AFTER_SUCCESS - 6:
            # Step 0 is seen as later ones are: what is hidden after the anchor is hidden here.
            images.append(robot.look(hide_markers=True))
            states.append(robot.observe().state)
            steps.append(step)
        action_A = robot.expert_action()
        actions.append(action_A)
        disturbed_A = action_A.copy()
        disturbed_A[:3] += np.float32(noise) * random.standard_normal(3).astype(np.float32)
        robot.apply(disturbed_A)
        left -= int(bool(robot.success))
        if left <= 0 or robot.done:
            break
    index = np.minimum(np.array(steps)[:, None] + np.arange(horizon), len(actions) - 1)
    return {
        "anchor": anchor,
        "images": np.stack(images),
        "states": np.stack(states),
        "chunks": np.stack(actions)[index],
        "goal_m": robot.goal_m,
        "markers_m": _markers(robot),
        "success": bool(robot.success),
    }


def _markers(robot: MetaWorldRobot) -> NDArray[np.float32]:
    places = robot.markers_m
    return np.stack([places.get(colour, np.full(3, np.nan, np.float32)) for colour in COLOURS])


def _collect_task(job: tuple[CollectConfig, str]) -> str:
    config, task = job
    seed = config.seed + SEEDS_PER_TASK * sorted(TASKS).index(task)
    random = np.random.default_rng(seed)
    start = time.monotonic()
    robot = MetaWorldRobot(task=task, seed=seed, max_steps=MAX_STEPS, end_on_success=False)
    rolls = []
    with closing(robot):
        for number in range(config.rollouts):
            noise = config.noise if number % 3 else 0.0
            rolls.append(rollout(robot, random, frames=config.frames, noise=noise))
    kept = [roll for roll in rolls if roll["success"]]
    np.savez_compressed(
        config.out / f"{task}.npz",
        allow_pickle=False,
        instruction=np.array(TASKS[task].instruction),
        anchors=np.stack([r["anchor"] for r in kept]),
        goals_m=np.stack([r["goal_m"] for r in kept]),
        markers_m=np.stack([r["markers_m"] for r in kept]),
        images=np.concatenate([r["images"] for r in kept]),
        states=np.concatenate([r["states"] for r in kept]),
        chunks=np.concatenate([r["chunks"] for r in kept]),
        episode=np.repeat(np.arange(len(kept)), [len(r["images"]) for r in kept]),
    )
    seconds = time.monotonic() - start
    num_frames = sum(len(r["images"]) for r in kept)
    return f"{len(kept)} of {len(rolls)} roll-outs kept, {num_frames} frames, {seconds:.0f} s"


if __name__ == "__main__":
    collect(tyro.cli(CollectConfig))
