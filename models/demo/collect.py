"""Training data of the demo policy: scripted experts, disturbed, with few frames per roll-out.

    python -m models.demo collect --out build/demo-data

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
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.anchorvla4d.presets import demo
from models.demo.config import SEEDS_PER_TASK, CollectConfig
from runtime.cli.progress import Progress
from runtime.recordings.recording import FRAME, STATE
from runtime.robots.metaworld import TASKS, MetaWorldRobot
from runtime.storage.files import Kind, check_output, replacing

ROLLOUTS = Kind("roll-outs of the demo's tasks", (b"anchors.npy", b"markers_m.npy"))
COLOURS = ("red", "green", "blue")
STEPS_AFTER_SUCCESS = 14
MAX_STEPS = 110


def collect(config: CollectConfig) -> None:
    """Collect every task, one process per task.

    Raises:
        OutputError: a file of another kind is in the way, or the folder cannot be written.
    """
    for task in config.tasks:
        check_output(config.out / f"{task}.npz", ROLLOUTS)
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
    anchor = robot.reset().values[FRAME]
    chosen = {0, *random.choice(np.arange(1, 60), frames - 1, replace=False).tolist()}
    horizon = demo().head.prediction_horizon
    images, states, steps, actions = [], [], [], []
    left = STEPS_AFTER_SUCCESS
    for step in range(MAX_STEPS):
        if step in chosen and left > STEPS_AFTER_SUCCESS - 6:
            # Step 0 is seen as later ones are: what is hidden after the anchor is hidden here.
            images.append(robot.look(hide_markers=True))
            states.append(robot.observe().values[STATE])
            steps.append(step)
        action_A = robot.expert_action()
        actions.append(action_A)
        disturbed_A = action_A.copy()
        disturbed_A[:3] += np.float32(noise) * random.standard_normal(3).astype(np.float32)
        robot.send(disturbed_A)
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
    lines = Progress()
    lines.step(f"{task}: roll-outs")
    with closing(robot):
        for number in range(config.rollouts):
            noise = config.noise if number % 3 else 0.0
            rolls.append(rollout(robot, random, frames=config.frames, noise=noise))
            lines.count(number + 1, config.rollouts)
    kept = [roll for roll in rolls if roll["success"]]
    path = config.out / f"{task}.npz"
    with replacing(path, ROLLOUTS) as partial, partial.open("wb") as file:
        np.savez_compressed(
            file,
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
