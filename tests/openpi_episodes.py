"""python -m tests.openpi_episodes BUNDLE [--tasks touch-red ...] [--num-episodes 10]

The unmodified `openpi-client` drives the simulator: `anchorvla serve BUNDLE` in a process of its
own computes, this one moves the arm. The client sends what the robot sees, `reset` with the first
frame of an episode, and carries out five actions of each chunk. Prints a line per task, and exits 0
if the server ended as it should, whatever the success.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import time
from importlib import metadata
from pathlib import Path

from openpi_client.websocket_client_policy import WebsocketClientPolicy

from runtime.robots.metaworld import MetaWorldRobot
from tests.fuzz_server import served

EXECUTE = 5
FIRST_SEED = 10_000
"""Seeds from here on were never trained on."""
TASKS = ("touch-red", "touch-green", "touch-blue", "button-press-topdown")


def drive(client: WebsocketClientPolicy, robot: MetaWorldRobot, seed: int) -> bool:
    """One episode; whether it succeeded."""
    seen, actions_TA, used, more = robot.reset(), None, EXECUTE, {"reset": True, "seed": seed}
    while not robot.done:
        if used == EXECUTE:
            values = {"observation/image": seen.values["frame"]}
            values |= {"observation/state": seen.values["state"], "prompt": robot.instruction}
            actions_TA, used, more = client.infer({**values, **more})["actions"], 0, {}
        robot.send(actions_TA[used])
        seen, used = robot.observe(), used + 1
    return bool(robot.success)


def succeeded(port: int, task: str, num_episodes: int) -> int:
    """How many of so many episodes of a task."""
    client, count = WebsocketClientPolicy("127.0.0.1", port), 0
    with contextlib.closing(MetaWorldRobot(task=task, seed=FIRST_SEED)) as robot:
        for seed in range(FIRST_SEED, FIRST_SEED + num_episodes):
            robot.reseed(seed)
            count += drive(client, robot, seed)
    client._ws.close()
    return count


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.openpi_episodes", description=__doc__)
    parser.add_argument("bundle", type=Path, metavar="BUNDLE")
    parser.add_argument("--tasks", nargs="+", default=list(TASKS))
    parser.add_argument("--num-episodes", type=int, default=10)
    options = parser.parse_args()
    versions = [f"{name} {metadata.version(name)}" for name in ("openpi-client", "websockets")]
    print(f"driven by {' with '.join(versions)}")
    with served(options.bundle) as (process, port):
        for task in options.tasks:
            start = time.monotonic()
            count = succeeded(port, task, options.num_episodes)
            seconds = time.monotonic() - start
            print(
                f"{task}: {count} of {options.num_episodes} succeeded, {seconds:.0f} s", flush=True
            )
    return int(process.returncode != 0)


if __name__ == "__main__":
    sys.exit(main())
