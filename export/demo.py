"""The main job on the demo policy: make or find its weights, export, run episodes, report."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from export.build import BuildConfig, build
from models.__main__ import DEMO, Init, init
from models.demo.collect import DEMO_TASKS
from runtime.__main__ import main as anchorvla
from runtime.errors import RobotError
from runtime.metaworld import rendering_backend


@dataclass(frozen=True, kw_only=True, slots=True)
class DemoConfig:
    """Do the whole job on the demo policy: weights, export, run, report."""

    out: Path = Path("build/demo")
    """Folder for checkpoint, bundle and report."""

    rate_hz: float = 20.0
    """Actions per second."""

    live: bool = True
    """Close the loop on the simulator where one can render here; recorded episodes run anyway."""


def demo(config: DemoConfig) -> int:
    """Run it.

    Returns:
        The exit code of the run.
    """
    checkpoint, bundle = config.out / "checkpoint", config.out / "bundle"
    episodes = DEMO / "episodes"
    init(Init(config="demo", out=checkpoint))
    build(
        BuildConfig(
            recipe="float32",
            checkpoint=checkpoint,
            out=bundle,
            image_size=(112, 112),
            tokens=64,
            golden=episodes / "reach-1.npz",
        )
    )
    anchorvla(["show", str(bundle), "--svg", str(config.out / "graph.svg"), "--brief"])
    run = ["run", str(bundle), "--episodes", str(episodes), "--rate-hz", str(config.rate_hz)]
    if config.live and _can_render():
        run += ["--tasks", *DEMO_TASKS]
    title = "AnchorVLA4D demo: recorded and simulated episodes"
    return anchorvla([*run, "--report", str(config.out / "report.html"), "--title", title])


def _can_render() -> bool:
    try:
        rendering_backend()
    except RobotError as error:
        print(f"no live simulator, recorded episodes only: {error}", file=sys.stderr)
        return False
    return True
