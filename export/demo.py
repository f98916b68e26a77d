"""The main job on the shipped demo policy: export, run episodes, report."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from export.build import build
from export.config import BuildConfig
from models.demo import CHECKPOINT, EPISODES
from models.demo.collect import DEMO_TASKS
from runtime.__main__ import main as anchorvla
from runtime.errors import RobotError
from runtime.metaworld import rendering_backend

UNSEEN_SEED = 10_000
"""Training uses seeds below it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DemoConfig:
    """Do the whole job on the shipped demo policy: export, run, report."""

    out: Path = Path("build/demo")
    """Folder for bundle and report."""

    rate_hz: float = 20.0
    """Actions per second."""

    live: bool = True
    """Close the loop on the simulator where one can render here; recorded episodes run anyway."""

    episodes: int = 2
    """Simulated ones per task."""


def demo(config: DemoConfig) -> int:
    """Run it.

    Returns:
        The exit code of the run.
    """
    bundle = config.out / "bundle"
    build(
        BuildConfig(
            recipe="float32",
            checkpoint=CHECKPOINT,
            out=bundle,
            image_size=(112, 112),
            tokens=64,
            golden=EPISODES / "touch-red-1.npz",
        )
    )
    anchorvla(["show", str(bundle), "--svg", str(config.out / "graph.svg"), "--brief"])
    run = ["run", str(bundle), "--episodes", str(EPISODES), "--rate-hz", str(config.rate_hz)]
    if config.live and _can_render():
        run += ["--tasks", *DEMO_TASKS, "--num-episodes", str(config.episodes)]
        run += ["--seed", str(UNSEEN_SEED)]
    title = "AnchorVLA4D demo: recorded and simulated episodes"
    return anchorvla([*run, "--report", str(config.out / "report.html"), "--title", title])


def _can_render() -> bool:
    try:
        rendering_backend()
    except RobotError as error:
        print(f"no live simulator, recorded episodes only: {error}", file=sys.stderr)
        return False
    return True
