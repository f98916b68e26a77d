"""python -m device_tests.success.delays BUNDLE

What does the robot do where thoughts take their time: success and motion in closed loop, with
`sync`, `async` and `rtc` chunks, by the control steps that a thought takes?

All of it are the same episodes, paired with `sync` without delay. A thought takes its steps in
virtual time, so this machine's speed does not matter. The world stands still while the loop waits:
with `sync` the robot does the same at every delay, and what it costs is time: only the longest is
run. A delay that chunks cannot carry is refused, as `anchorvla run` would refuse it.

example: python -m device_tests.success.delays bundle --episodes 100 --json delays.json

Exit codes are those of `python -m device_tests.success`.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

import runtime
from device_tests.success.__main__ import machine, show_progress
from device_tests.success.episodes import (
    EpisodeResult,
    Load,
    MakeRobot,
    SuccessConfig,
    delay_of,
    evaluate,
    load_policy,
)
from device_tests.success.intervals import Comparison, Rate
from device_tests.success.motion import MotionComparison
from runtime.cli.command import finish, wants_debug
from runtime.control.delay import Chunks, choose_chunks
from runtime.control.loop import LoopConfig
from runtime.declarations import from_source
from runtime.robots.metaworld import MetaWorldRobot
from runtime.storage.files import Kind, check_output, write_file

RESULT = Kind("a table of delays", (b'"machine"', b'"delays"'))
DELAYS = (1, 2, 3, 4, 5, 6, 8)
"""Control steps."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One way to use chunks at one delay, over all tasks."""

    chunks: Chunks
    delay_steps: int
    rate: Rate | None = None
    """None where that delay is refused."""
    refused: str = ""
    seconds: float = 0.0
    """Mean of an episode."""
    overtaken: float = 0.0
    """Mean number of actions that were dropped for their age."""
    held: float = 0.0
    """Mean number of control steps without an action."""
    success: Comparison | None = None
    """Against sync without delay; None for itself."""
    motion: MotionComparison | None = None

    def words(self) -> str:
        """A line."""
        head = f"{self.chunks:<6}{self.delay_steps:>3} steps  "
        if self.rate is None:
            return head + f"refused: {self.refused}"
        rate, line = self.rate, head
        line += f"{rate.successes:>4} of {rate.n} [{100 * rate.low:.1f}, {100 * rate.high:.1f}] %"
        line += f"  {self.seconds:5.1f} s, {self.overtaken:.1f} overtaken, {self.held:.1f} held"
        if self.success is not None:
            c = self.success
            line += f"  {100 * c.difference:+.1f} points [{100 * c.low:+.1f}, {100 * c.high:+.1f}]"
        if self.motion is not None:
            for name, label in (("mean_jerk", "jerk"), ("seam_step", "seam step")):
                r = self.motion.figures[name]
                line += f", {label} {r.ratio:.2f} [{r.low:.2f}, {r.high:.2f}]"
        return line


def sweep(
    config: SuccessConfig,
    delays: Sequence[int],
    horizon: int,
    *,
    takes_leftover: bool,
    load: Load = load_policy,
    make_robot: MakeRobot = MetaWorldRobot,
) -> Iterator[Row]:
    """`sync` without delay and with the longest, then `async` and `rtc` with each.

    Args:
        config: of one bundle, with `sync` and no delay.
        delays: control steps, above 0.
        horizon: actions of a chunk.
        takes_leftover: whether the policy can; `rtc` is refused otherwise.
        load: as `evaluate` takes it.
        make_robot: likewise.
    """
    (bundle,) = config.bundles
    first: Sequence[EpisodeResult] | None = None
    ways: list[tuple[Chunks, int]] = [("sync", 0), ("sync", max(delays))]
    meanwhile: tuple[Chunks, ...] = ("async", "rtc")
    for chunks, delay in ways + [(way, delay) for delay in delays for way in meanwhile]:
        posed = replace(config, chunks=chunks, delay_steps=delay)
        if refused := _refusal(posed, horizon, takes_leftover):
            yield Row(chunks=posed.chunks, delay_steps=delay, refused=refused)
            continue
        progress = show_progress(len(config.tasks) * config.episodes)
        done = evaluate(posed, load=load, make_robot=make_robot, on_episode=progress)
        results = done.results[bundle]
        yield _row(posed, results, first)
        first = first or results


def _refusal(config: SuccessConfig, horizon: int, takes_leftover: bool) -> str:
    rate_hz = LoopConfig().rate_hz
    delay = delay_of(config.delay_steps, rate_hz)
    try:
        choose_chunks(
            config.chunks,
            delay,
            horizon=horizon,
            execute=config.execute,
            rate_hz=rate_hz,
            takes_leftover=takes_leftover,
        )
    except ValueError as error:
        return str(error)
    return ""


def _row(
    config: SuccessConfig,
    results: Sequence[EpisodeResult],
    first: Sequence[EpisodeResult] | None,
) -> Row:
    outcomes, motions = [r.success for r in results], [r.motion for r in results]
    return Row(
        chunks=config.chunks,
        delay_steps=config.delay_steps,
        rate=Rate.of(outcomes),
        seconds=float(np.mean([r.seconds for r in results])),
        overtaken=float(np.mean([r.num_overtaken for r in results])),
        held=float(np.mean([r.num_held for r in results])),
        success=Comparison.of([r.success for r in first], outcomes) if first else None,
        motion=MotionComparison.of([r.motion for r in first], motions) if first else None,
    )


def main(arguments: list[str] | None = None) -> int:
    """Sweep; errors that a user can mend become one line and an exit code."""
    return finish(lambda: _main(arguments), debug=wants_debug(arguments))


def _main(arguments: list[str] | None) -> None:
    options = vars(_parser().parse_args(arguments))
    options.pop("debug")
    out, delays = options.pop("json"), options.pop("delay_steps")
    settings: dict[str, Any] = {n: tuple(v) if n == "tasks" else v for n, v in options.items()}
    config = SuccessConfig(bundles=(settings.pop("bundle"),), **settings)
    if len(set(delays)) != len(delays) or min(delays) < 1:
        raise ValueError(f"--delay-steps are at least 1, and each once, got {delays}")
    if out is not None:
        check_output(out, RESULT)
    manifest, begin = runtime.read_bundle(config.bundles[0]).manifest, time.monotonic()
    graph = manifest.graph
    horizon = graph.tensors[graph.target].shape[0]
    takes_leftover = bool(from_source(graph.inputs, "loop"))
    print(f"{config.episodes} episodes of {', '.join(config.tasks)}, chunks of {horizon} actions")
    rows = list[Row]()
    for row in sweep(config, sorted(delays), horizon, takes_leftover=takes_leftover):
        print(row.words(), flush=True)
        rows.append(row)
    if out is not None:
        document = {
            "machine": machine(),
            "seconds": round(time.monotonic() - begin, 1),
            "bundle": {"source_sha256": manifest.source_sha256, "recipe": manifest.recipe.name},
            "config": {n: v for n, v in asdict(config).items() if n != "bundles"},
            "delays": [asdict(row) for row in rows],
        }
        write_file(out, json.dumps(document, indent=1) + "\n", RESULT)
        print(f"\njson: {out}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m device_tests.success.delays",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        argument_default=argparse.SUPPRESS,
    )
    add = parser.add_argument
    add("bundle", type=Path, metavar="BUNDLE")
    add("--tasks", nargs="+", help="of the simulator (default all)")
    add("--episodes", type=int, help="per task, way and delay (default 20)")
    add("--execute", type=int, help="actions per thought (default 5)")
    add("--jobs", type=int, help="processes of one thread each (default all cores)")
    add(
        "--delay-steps",
        type=int,
        nargs="+",
        default=DELAYS,
        help=f"control steps that a thought takes (default {' '.join(map(str, DELAYS))})",
    )
    add("--json", type=Path, default=None, help="write everything here")
    add("--debug", action="store_true", default=False, help="show the traceback of an error")
    return parser


if __name__ == "__main__":
    sys.exit(main())
