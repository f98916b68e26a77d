"""python -m tests.blink_experts [--episodes N]

How far does a memory get in the task whose marker blinks once?

Each row is the scripted expert, except that it does not know which marker blinked: it looks at
every fifth step, as a policy does, and takes the marker that it sees blink in the frames it has.
One that sees none guesses, the same throughout an episode. All run the same episodes.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from contextlib import closing

import numpy as np

from device_tests.success.intervals import Rate
from runtime.control.loop import LoopConfig
from runtime.robots.metaworld import MetaWorldRobot

Memory = Callable[[int], set[int]]
"""The steps whose frames an expert has at a step."""

TASK = "touch-what-blinked"
MEMORIES: Mapping[str, Memory] = {
    "knows (looks at every step)": lambda step: set(range(step + 1)),
    "first and current frame": lambda step: {0, step},
    "and of 15 and 30 steps ago": lambda step: {0, step, step - 15, step - 30},
    "remembers what it saw": lambda step: set(range(0, step + 1, LoopConfig().execute)),
}


def solves(robot: MetaWorldRobot, memory: Memory, *, seed: int, look_every: int) -> bool:
    """Whether an expert with this memory solves the episode of `seed`.

    Args:
        robot: of a task with a blink.
        memory: what the expert sees.
        seed: of the episode, and of the guess.
        look_every: actions between two looks.
    """
    robot.reseed(seed)
    robot.reset()
    blink = robot.blink
    assert blink is not None
    marker = int(np.random.default_rng((seed, 2)).integers(blink.blink.num_markers))
    guess, step = marker, 0
    while not robot.done:
        if step % look_every == 0:
            has_seen = any(blink.begin <= at < blink.end for at in memory(step))
            marker = blink.marker if has_seen else guess
        robot.send(blink.expert_action(robot.hand_m, marker))
        step += 1
    return robot.success is True


def measure(*, episodes: int, seed0: int) -> dict[str, Rate]:
    """The rate of each memory, over the same seeds."""
    with closing(MetaWorldRobot(task=TASK, seed=seed0)) as robot:
        return {
            name: Rate.of(
                [
                    solves(robot, memory, seed=seed0 + i, look_every=LoopConfig().execute)
                    for i in range(episodes)
                ]
            )
            for name, memory in MEMORIES.items()
        }


def main(arguments: list[str] | None = None) -> None:
    """Print a row per memory."""
    parser = argparse.ArgumentParser(prog="python -m tests.blink_experts")
    parser.add_argument("--episodes", type=int, default=400, help="per row (default 400)")
    parser.add_argument("--seed0", type=int, default=10_000, help="of the first (default 10000)")
    given = parser.parse_args(arguments)
    for name, rate in measure(episodes=given.episodes, seed0=given.seed0).items():
        share = f"{rate.successes:>4} of {rate.n}  {100 * rate.successes / rate.n:5.1f} %"
        print(f"{name:<28} {share}  [{100 * rate.low:5.1f}, {100 * rate.high:5.1f}]")


if __name__ == "__main__":
    main()
