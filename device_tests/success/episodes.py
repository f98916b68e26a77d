"""Episodes of bundles in closed loop on the simulator: run, paired by seed, over processes.

T = action in the chunk, A = action dimension.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from multiprocessing import get_context
from multiprocessing.util import Finalize
from pathlib import Path
from signal import SIG_IGN, SIGINT, signal
from typing import Literal, Protocol, get_args

import numpy as np
from numpy.typing import NDArray

import runtime
from device_tests.success.intervals import Comparison, Rate
from device_tests.success.motion import Motion, MotionComparison, mean_motion, measure_motion
from device_tests.success.posed import EvaluatedPolicy, PosedPolicy
from runtime.backends.onnxruntime import OnnxRuntimeBackend
from runtime.control.clock import VirtualClock
from runtime.control.delay import Chunks, Delay
from runtime.control.loop import LoopConfig, run_episode
from runtime.control.thinker import InlineThinker
from runtime.control.trace import Step, Trace
from runtime.errors import RobotError
from runtime.recordings.recording import FRAME
from runtime.robots.metaworld import TASKS, MetaWorldRobot
from runtime.robots.robot import Robot

AnchorKind = Literal["given", "current", "wrong"]
Frames = tuple[NDArray[np.uint8], ...]
"""The anchor and the picture after every action of an episode; empty where nobody asked."""

MEAN = "mean"
"""Row over all tasks. They have the same number of episodes, so pooling them is their mean."""


class MakeRobot(Protocol):
    def __call__(self, *, task: str, seed: int) -> Robot: ...


Load = Callable[[Path], EvaluatedPolicy]


@dataclass(frozen=True, kw_only=True, slots=True)
class SuccessConfig:
    """What is evaluated, and how."""

    bundles: tuple[Path, ...]
    """Folders written by `python -m export build`; the others are compared with the first."""

    tasks: tuple[str, ...] = tuple(name for name, task in TASKS.items() if task.blink is None)
    """Tasks of the simulator; by default all that need no memory of the middle of an episode."""

    episodes: int = 20
    """Episodes per task and bundle."""

    seed0: int = 10_000
    """Seed of the first episode of every task."""

    execute: int = LoopConfig().execute
    """Actions of a chunk that are carried out before the policy thinks again."""

    anchor: AnchorKind = "given"
    """`current`: every frame becomes the anchor; `wrong`: the first frame of seed + 1."""

    instruction: str | None = None
    """Task whose instruction is given instead of the robot's own."""

    cold: bool = False
    """Recompute everything at every thought."""

    forgetful: bool = False
    """Let the policy remember nothing but the first frame, from one thought to the next."""

    chunks: Chunks = "sync"
    """How the loop uses them."""

    delay_steps: int = 0
    """Control steps that every thought takes, the last of them by half, in virtual time. The world
    stands still where the loop waits: `sync` does the same whatever they are, and takes longer."""

    jobs: int = field(default_factory=lambda: len(os.sched_getaffinity(0)))
    """Processes, each with one thread; one is this process itself."""

    def __post_init__(self) -> None:
        if len(set(self.bundles)) != len(self.bundles) or not self.bundles:
            raise ValueError(f"name at least one bundle, and each once, got {_words(self.bundles)}")
        if len(set(self.tasks)) != len(self.tasks) or not self.tasks:
            raise ValueError(f"name at least one task, and each once, got {_words(self.tasks)}")
        for task in (*self.tasks, *([self.instruction] if self.instruction is not None else [])):
            if task not in TASKS:
                raise ValueError(f"task must be one of {', '.join(TASKS)}, got {task!r}")
        if self.anchor not in get_args(AnchorKind):
            known = ", ".join(get_args(AnchorKind))
            raise ValueError(f"anchor must be one of {known}, got {self.anchor!r}")
        for name in ("episodes", "execute", "jobs"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        if self.chunks not in get_args(Chunks):
            raise ValueError(
                f"chunks must be one of {', '.join(get_args(Chunks))}, got {self.chunks!r}"
            )
        if self.delay_steps < (least := int(self.chunks != "sync")):
            raise ValueError(
                f"delay_steps must be at least {least} with chunks={self.chunks}, got "
                f"{self.delay_steps}"
            )
        if self.seed0 < 0:
            raise ValueError(f"seed0 must not be negative, got {self.seed0}")


@dataclass(frozen=True, kw_only=True, slots=True)
class EpisodeResult:
    """What one episode came to."""

    task: str
    seed: int
    success: bool
    other_success: bool | None
    """Whether the task whose instruction was given instead was achieved; None where the robot
    cannot tell."""
    num_steps: int
    num_thoughts: int
    num_clipped_actions: int
    """Actions that the robot had to clip."""
    num_overtaken: int
    """Actions that came too late for their moment."""
    num_held: int
    """Control steps, behind the first action, for which none was valid."""
    seconds: float
    """Of virtual time, in which the robot waited too."""
    digest: str
    """SHA-256 over all chunks: equal if and only if the policy answered the same bits."""
    motion: Motion | None
    """Of the actions as they were sent; None where the robot cannot tell what they command, or the
    episode was too short."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One bundle on one task, or on all of them."""

    rate: Rate
    median_steps: float | None
    """Of the successes; None if there are none."""
    other_successes: int | None
    """Episodes that achieved the other instruction's task; None where nobody can tell."""
    against_first: Comparison | None
    """With the first bundle, on the same seeds; None for itself."""
    motion: Motion | None
    """Mean over the episodes; None where none of them tells."""
    motion_against_first: MotionComparison | None
    """Likewise on the same seeds."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluation:
    """All episodes of a run."""

    config: SuccessConfig
    results: Mapping[Path, Sequence[EpisodeResult]]
    """Per bundle, in one order of tasks and seeds."""
    strips: Sequence[tuple[EpisodeResult, Frames]]
    """Pictures of the first bundle's first episodes."""

    @property
    def rows(self) -> dict[str, dict[Path, Row]]:
        """Per task, and behind several tasks for `MEAN`: per bundle."""
        names = (*self.config.tasks, MEAN) if len(self.config.tasks) > 1 else self.config.tasks
        return {n: {b: self._row(b, n) for b in self.config.bundles} for n in names}

    def _row(self, bundle: Path, name: str) -> Row:
        first, results = (
            [result for result in self.results[b] if name in (MEAN, result.task)]
            for b in (self.config.bundles[0], bundle)
        )
        steps = [result.num_steps for result in results if result.success]
        told = [r.other_success for r in results if r.other_success is not None]
        outcomes = [result.success for result in results]
        motions = [result.motion for result in results]
        is_first = bundle == self.config.bundles[0]
        return Row(
            rate=Rate.of(outcomes),
            median_steps=float(np.median(steps)) if steps else None,
            other_successes=sum(told) if told else None,
            against_first=None if is_first else Comparison.of([r.success for r in first], outcomes),
            motion=mean_motion(motions),
            motion_against_first=None
            if is_first
            else MotionComparison.of([r.motion for r in first], motions),
        )


def load_policy(bundle: Path) -> runtime.Policy:
    """A bundle on one thread: the processes share the cores."""
    return runtime.load(bundle, backend=lambda _: OnnxRuntimeBackend(num_threads=1))


def run(
    policy: PosedPolicy,
    robot: Robot,
    *,
    task: str,
    seed: int,
    execute: int,
    chunks: Chunks = "sync",
    delay_steps: int = 0,
    other: str | None = None,
    keep_frames: bool = False,
) -> tuple[EpisodeResult, Frames]:
    """Drive `robot` for one episode by the loop that drives real ones; nothing waits for a clock.

    Args:
        policy: what thinks.
        robot: driven from `reset` until `done`. If it has a method `achieved(task)`, that tells
            whether another task was achieved in this episode, or None if its scene lacks that one.
            If it has `commands`, [A] of `motion.CommandKind`, its motion is measured.
        task: for the record.
        seed: of the action noise.
        execute: actions of a chunk that are carried out before the next thought.
        chunks: how the loop uses them.
        delay_steps: control steps of the virtual clock that a thought takes.
        other: the task to ask `achieved` about.
        keep_frames: whether to look after every action.

    Raises:
        ValueError: `execute` is more than a chunk holds, or chunks cannot carry the delay.
        RobotError: the robot cannot go on, or cannot tell whether it succeeded.
    """
    images = list[NDArray[np.uint8]]()

    def look(step: Step) -> None:
        images.append(robot.observe().values[FRAME])

    clock, config = VirtualClock(), LoopConfig(execute=execute, chunks=chunks)
    delay = delay_of(delay_steps, config.rate_hz)
    trace = run_episode(
        policy,
        robot,
        config,
        seed=seed,
        clock=clock,
        thinker=InlineThinker(policy, clock, delay.largest_s),
        delay=delay,
        on_step=look if keep_frames else lambda step: None,
    )
    if trace.success is None:
        raise RobotError(f"{task}: this robot cannot tell success; evaluate in the simulator")
    achieved = getattr(robot, "achieved", None)
    result = EpisodeResult(
        task=task,
        seed=seed,
        success=trace.success,
        other_success=None if other is None or achieved is None else achieved(other),
        num_steps=len(trace.steps),
        num_thoughts=sum(step.act_s is not None for step in trace.steps),
        num_clipped_actions=trace.num_clipped,
        num_overtaken=trace.num_overtaken,
        num_held=trace.num_held,
        seconds=clock(),
        digest=policy.digest,
        motion=_motion(robot, trace),
    )
    return result, (trace.first.values[FRAME], *images) if keep_frames else ()


def delay_of(steps: int, rate_hz: float) -> Delay:
    """Of thoughts that end in the middle of their last control step: no tick is met by rounding."""
    delay_s = max(0.0, steps - 0.5) / rate_hz
    return Delay(median_s=delay_s, largest_s=delay_s, num_thoughts=1)


def _motion(robot: Robot, trace: Trace) -> Motion | None:
    kinds = getattr(robot, "commands", None)
    if kinds is None or not trace.steps:
        return None
    return measure_motion(
        np.stack([step.sent for step in trace.steps]),
        [number for number, step in enumerate(trace.steps) if step.act_s is not None],
        kinds,
        (robot.limits.high - robot.limits.low) / 2,
        trace.period_s,
    )


def evaluate(
    config: SuccessConfig,
    *,
    load: Load = load_policy,
    make_robot: MakeRobot = MetaWorldRobot,
    num_strips: int = 0,
    on_episode: Callable[[EpisodeResult], None] = lambda result: None,
) -> Evaluation:
    """Run every bundle on every task and seed.

    Args:
        config: what to run.
        load: makes a policy of a bundle, once per process; picklable if `config.jobs` > 1.
        make_robot: picklable likewise.
        num_strips: episodes per task of the first bundle whose pictures are kept.
        on_episode: called after each episode, in order.

    Raises:
        ValueError, BundleError, EngineError, ObservationError, RobotError: the first that an
            episode raised; the rest are not run.
    """
    jobs = [
        _Job(bundle, task, config.seed0 + i, i < num_strips and bundle == config.bundles[0])
        for i in range(config.episodes)
        for task in config.tasks
        for bundle in config.bundles
    ]
    results: dict[Path, list[EpisodeResult]] = {bundle: [] for bundle in config.bundles}
    strips: list[tuple[EpisodeResult, Frames]] = []
    outcomes = _outcomes(_Worker(config, load, make_robot), jobs)
    for job, (result, frames) in zip(jobs, outcomes, strict=True):
        results[job.bundle].append(result)
        if job.keep_frames:
            strips.append((result, frames))
        on_episode(result)
    return Evaluation(config=config, results=results, strips=strips)


@dataclass(frozen=True, slots=True)
class _Job:
    bundle: Path
    task: str
    seed: int
    keep_frames: bool


class _Worker:
    """Runs jobs one after the other, and keeps the policies it has loaded and a robot per task."""

    def __init__(self, config: SuccessConfig, load: Load, make_robot: MakeRobot) -> None:
        self._config, self._load, self._make_robot = config, load, make_robot
        self._robots: dict[str, Robot] = {}
        self._policies: dict[Path, EvaluatedPolicy] = {}

    def __call__(self, job: _Job) -> tuple[EpisodeResult, Frames]:
        config = self._config
        # Not before the first job, so that a bundle that does not load is an error of that job.
        if job.bundle not in self._policies:
            self._policies[job.bundle] = self._load(job.bundle)
        wrong = self._first_frame(job.task, job.seed + 1) if config.anchor == "wrong" else None
        other = config.instruction if config.instruction != job.task else None
        robot = self._robot(job.task, job.seed)
        posed = PosedPolicy(
            self._policies[job.bundle],
            instruction=None if other is None else TASKS[other].instruction,
            anchor=wrong,
            follow=config.anchor == "current",
            cold=config.cold,
            forgetful=config.forgetful,
        )
        return run(
            posed,
            robot,
            task=job.task,
            seed=job.seed,
            execute=config.execute,
            chunks=config.chunks,
            delay_steps=config.delay_steps,
            other=other,
            keep_frames=job.keep_frames,
        )

    def close(self) -> None:
        """Close the robots."""
        for robot in self._robots.values():
            robot.close()
        self._robots.clear()

    def _first_frame(self, task: str, seed: int) -> NDArray[np.uint8]:
        return self._robot(task, seed).reset().values[FRAME]

    def _robot(self, task: str, seed: int) -> Robot:
        """As fresh: the task's robot with another seed if it can take one, or a new one."""
        robot = self._robots.pop(task, None)
        reseed = getattr(robot, "reseed", None)
        if robot is None or reseed is None:
            if robot is not None:
                robot.close()
            robot = self._make_robot(task=task, seed=seed)
        else:
            reseed(seed)
        self._robots[task] = robot
        return robot


_worker: _Worker | None = None
"""In a process of the pool: the one that `_adopt` was given."""


def _adopt(worker: _Worker) -> None:
    global _worker
    _worker = worker
    signal(SIGINT, SIG_IGN)  # Ctrl-C reaches all processes; the first one ends the others
    Finalize(None, worker.close, exitpriority=0)  # while the libraries behind robots are alive


def _run_job(job: _Job) -> tuple[EpisodeResult, Frames]:
    assert _worker is not None
    return _worker(job)


def _outcomes(worker: _Worker, jobs: Sequence[_Job]) -> Iterator[tuple[EpisodeResult, Frames]]:
    num_processes = min(worker._config.jobs, len(jobs))
    if num_processes == 1:
        with contextlib.closing(worker):
            yield from map(worker, jobs)
        return
    # Spawned, because MuJoCo and ONNX Runtime hold threads that a fork would lose.
    with ProcessPoolExecutor(num_processes, get_context("spawn"), _adopt, (worker,)) as pool:
        try:
            yield from pool.map(_run_job, jobs)
        except BrokenProcessPool:
            raise RobotError(
                f"one of {num_processes} processes died, perhaps for lack of memory: "
                "use fewer --jobs"
            ) from None


def _words(names: Sequence[object]) -> str:
    return " ".join(map(str, names)) or "none"
