"""The main job on the shipped demo policy: export, run episodes, report."""

from __future__ import annotations

import sys

from export.build import build
from export.config import DEMO_OPTIONS, BuildConfig, DemoConfig
from models.demo import CHECKPOINT, EPISODES
from models.demo.config import DEMO_TASKS, GOAL
from runtime.__main__ import main as anchorvla
from runtime.errors import RobotError
from runtime.robots.rendering import rendering_backend
from runtime.storage.files import DRAWING, PAGE, check_output

UNSEEN_SEED = 10_000
"""Training uses seeds below it."""
LEAF_HZ = 2.0
"""How often the policy is asked where it believes the thing to be that the instruction names."""


def demo(config: DemoConfig) -> int:
    """Run it.

    Returns:
        The exit code of the run.
    """
    bundle, page, drawing = (config.out / name for name in ("bundle", "report.html", "graph.svg"))
    check_output(page, PAGE)
    check_output(drawing, DRAWING)
    build(
        BuildConfig(
            recipe="float32",
            checkpoint=CHECKPOINT,
            out=bundle,
            **DEMO_OPTIONS,
        )
    )
    anchorvla(["show", str(bundle), "--svg", str(drawing), "--brief"])
    run = ["run", str(bundle), "--episodes", str(EPISODES), "--rate-hz", str(config.rate_hz)]
    run += ["--leaf", f"{GOAL.name}={LEAF_HZ:g}"]
    if config.live and _can_render():
        run += ["--tasks", *DEMO_TASKS, "--num-episodes", str(config.episodes)]
        run += ["--seed", str(UNSEEN_SEED)]
    title = "anchorvla-edge demo: recorded and simulated episodes"
    return anchorvla([*run, "--report", str(page), "--title", title])


def _can_render() -> bool:
    try:
        rendering_backend()
    except RobotError as error:
        print(f"no live simulator, recorded episodes only: {error}", file=sys.stderr)
        return False
    return True
