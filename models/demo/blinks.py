"""Training data with something to remember: whole episodes of the task whose marker blinks once.

    python -m models.demo blinks --out build/blinks

Each episode is a `Recording` of every simulator step: frame, state, what was sent, and, in streams
of their own, what only the simulator knows. The trade-off: a memory needs the steps between the
blink and the decision, so there are fewer episodes than `collect` gives, with all their frames. The
same seed gives the same bits.

Streams beside `FRAME` and `STATE`, all float32, M = white markers:

    event    [N, 1]    1 where the frame shows the blink, else 0
    blinked  [N, 1]    number of the marker that blinks
    markers  [N, 3 M]  where the white markers are, in metres
    target   [N, 3]    where the hand has to be now, in metres
    expert   [N, A]    what the expert would do; `actions` is what was sent: that, disturbed
"""

from __future__ import annotations

import multiprocessing
import time
from concurrent.futures import ProcessPoolExecutor
from contextlib import closing
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.demo.config import BlinksConfig
from models.demo.record import RATE_HZ
from runtime.cli.progress import Progress
from runtime.recordings.recording import (
    FRAME,
    RECORDING,
    STATE,
    Recording,
    evenly,
    save_recording,
)
from runtime.robots.metaworld import MetaWorldRobot
from runtime.storage.files import check_output

EVENT, BLINKED, MARKERS, TARGET, EXPERT = "event", "blinked", "markers", "target", "expert"
_STEPS_AFTER_TOUCH = 5
_EPISODES_PER_ROBOT = 10
"""That a process runs in turn: building a robot takes as long as half an episode."""


def record_blinks(config: BlinksConfig) -> None:
    """Do what `BlinksConfig` says.

    Raises:
        OutputError: a file that is no recording is in the way, or the folder cannot be written.
        RobotError: the simulator cannot run here.
    """
    seeds = range(config.seed, config.seed + config.episodes)
    for seed in seeds:
        check_output(config.out / f"{config.task}-{seed}.npz", RECORDING)
    jobs = [(config, seeds[i :: _strides(config)]) for i in range(_strides(config))]
    begin, sizes = time.monotonic(), list[tuple[int, int]]()
    lines = Progress()
    lines.step(f"{config.task}: episodes")
    num_run = 0
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(mp_context=context, max_workers=config.jobs) as pool:
        for job, found in zip(jobs, pool.map(_record_some, jobs), strict=True):
            sizes += found
            num_run += len(job[1])
            lines.count(num_run, config.episodes)
    num_steps, num_bytes = (sum(column) for column in zip(*sizes, strict=True)) if sizes else (0, 0)
    seconds = time.monotonic() - begin
    print(
        f"{len(sizes)} of {config.episodes} episodes kept, {num_steps} steps, "
        f"{num_bytes / 1e6:.0f} MB, {seconds:.0f} s: {num_steps / seconds:.0f} frames/s"
    )


def record_blink(robot: MetaWorldRobot, *, task: str, seed: int, noise: float) -> Recording | None:
    """The episode of `seed`, by the scripted expert, disturbed.

    Args:
        robot: of `task`, made with end_on_success=False.
        task: for the record.
        seed: of the episode and of the disturbance.
        noise: standard deviation of what is added to x, y and z of each action.

    Returns:
        None if the hand, disturbed, did not touch the right marker first.
    """
    random = np.random.default_rng((seed, 1))
    robot.reseed(seed)
    observation, blink = robot.reset(), robot.blink
    assert blink is not None
    rows = list[dict[str, NDArray[Any]]]()
    actions = list[NDArray[np.float32]]()
    num_steps_left = _STEPS_AFTER_TOUCH
    while not robot.done and num_steps_left > 0:
        expert_A = robot.expert_action()
        rows.append(
            {
                FRAME: observation.values[FRAME],
                STATE: observation.values[STATE],
                EVENT: np.array([blink.is_lit], np.float32),
                BLINKED: np.array([blink.marker], np.float32),
                MARKERS: blink.markers_m.ravel().astype(np.float32),
                TARGET: blink.target_m.astype(np.float32),
                EXPERT: expert_A,
            }
        )
        disturbed_A = expert_A.copy()
        disturbed_A[:3] += np.float32(noise) * random.standard_normal(3).astype(np.float32)
        actions.append(robot.send(disturbed_A))
        observation = robot.observe()
        num_steps_left -= int(blink.success is not None)
    if not robot.success:
        return None
    return Recording(
        instruction=robot.instruction,
        task=task,
        seed=seed,
        rate_hz=RATE_HZ,
        streams={name: evenly(np.stack([row[name] for row in rows]), RATE_HZ) for name in rows[0]},
        actions=np.stack(actions),
        success=True,
    )


def _strides(config: BlinksConfig) -> int:
    return -(-config.episodes // _EPISODES_PER_ROBOT)


def _record_some(job: tuple[BlinksConfig, range]) -> list[tuple[int, int]]:
    """Write the episodes of some seeds; steps and bytes of each that was kept."""
    config, seeds = job
    robot = MetaWorldRobot(
        task=config.task, seed=0, image_size=config.image_size, end_on_success=False
    )
    found = []
    with closing(robot):
        for seed in seeds:
            noise = config.noise if seed % 3 else 0.0
            recording = record_blink(robot, task=config.task, seed=seed, noise=noise)
            if recording is not None:
                path = config.out / f"{config.task}-{seed}.npz"
                save_recording(recording, path)
                found.append((recording.num_frames, path.stat().st_size))
    return found
