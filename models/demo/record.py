"""Record the demo's expert episodes from the Meta-World simulator.

    python -m models.demo record --out models/demo/episodes
    python -m models.demo record --out models/demo/held_out --seed 20001

Writes one .npz per episode, each reproducible from its task and seed: every simulator step until
the scripted expert succeeds and a few more. One simulator step counts as one control step at 10 Hz,
so the replay runs slower than the simulated arm, which takes 12.5 ms per step.
"""

from __future__ import annotations

from contextlib import closing

import numpy as np

from models.demo.config import DEMO_TASKS, RecordConfig
from runtime.errors import RobotError
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

RATE_HZ = 10.0
_STEPS_AFTER_SUCCESS = 5


def record_episode(*, task: str, seed: int, image_size: int = 112) -> Recording:
    """Let the scripted expert do `task` once.

    Raises:
        RobotError: if the simulator cannot run here, or the expert fails with this seed.
    """
    robot = MetaWorldRobot(task=task, seed=seed, image_size=image_size, end_on_success=False)
    images, states, actions = [], [], []
    num_steps_left = _STEPS_AFTER_SUCCESS
    with closing(robot):
        observation = robot.reset()
        while not robot.done and num_steps_left > 0:
            action_A = robot.expert_action()
            images.append(observation.values[FRAME])
            states.append(observation.values[STATE])
            actions.append(action_A)
            robot.send(action_A)
            observation = robot.observe()
            num_steps_left -= int(robot.success is True)
        if not robot.success:
            raise RobotError(
                f"{task}: the expert fails with seed {seed} in {len(actions)} steps; "
                "choose another seed"
            )
    return Recording(
        instruction=robot.instruction,
        task=task,
        seed=seed,
        rate_hz=RATE_HZ,
        streams={
            FRAME: evenly(np.stack(images), RATE_HZ),
            STATE: evenly(np.stack(states), RATE_HZ),
        },
        actions=np.stack(actions),
        success=True,
    )


def record(config: RecordConfig) -> None:
    """Do what `RecordConfig` says.

    Raises:
        OutputError: a file that is no recording is in the way, or the folder cannot be written.
    """
    for seed, task in enumerate(DEMO_TASKS, config.seed):
        check_output(config.out / f"{task}-{seed}.npz", RECORDING)
    for seed, task in enumerate(DEMO_TASKS, config.seed):
        recording = record_episode(task=task, seed=seed, image_size=config.image_size)
        path = config.out / f"{task}-{seed}.npz"
        save_recording(recording, path)
        print(f"{path}: {recording.num_frames} steps, {path.stat().st_size / 1000:.0f} kB")
