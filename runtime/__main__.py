"""anchorvla VERB BUNDLE (= python -m runtime VERB BUNDLE)

    run    drive recorded episodes or the simulator at a fixed rate, and report
    replay ask a policy again what it was asked in a recorded run, and compare to the bit
    check  does the bundle compute what its exporter measured?
    bench  time it on this machine
    show   what is in it, and when each part is recomputed
    serve  answer openpi's clients over the network
    build  compile it for this machine's GPU, once; then --backend tensorrt runs it
    trust  whose signed releases this machine runs
    doctor what keeps this machine from running a policy; exits 0, or 1 for warnings, 2 for errors

Exit codes: 0 done, 1 a check failed, 2 wrong usage, 3 bundle, 4 observation, 5 engine, 6 robot or
recording, 8 output that cannot be written, 130 interrupted.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import get_args

from . import anchor
from .backends.registry import BACKENDS, plan_errors
from .board import doctor
from .bundle import PLANS, read_bundle
from .cli import trust
from .cli.command import finish, wants_debug
from .cli.progress import PERIOD_S, Progress
from .control.delay import Delay
from .control.heartbeat import of_process
from .control.leaf_watch import Answers, LeafChecks
from .control.leaves import parse_leaves
from .control.loop import CHUNKS, LoopConfig, run_episode
from .control.recorder import Recorder
from .control.server import command as serve_command
from .control.sight import EpisodeScene
from .control.trace import Step
from .errors import PowerModeWarning, RecordingError, UnmeasuredWarning
from .pages import replay_command
from .pages.benchmark import measure
from .pages.imitation import Run
from .pages.leaves import error_lines, errors_as_json
from .pages.live import command as live
from .pages.live.page import LivePage
from .pages.report import summarize, write_report
from .pages.show import describe, draw
from .pages.svg import standalone
from .plans import command as build_command
from .policy import Policy, load
from .recordings.journal import foreign, free_path
from .recordings.read import read_recordings
from .robots.description import Description, read_description
from .robots.replay import ReplayedRobot
from .robots.robot import Robot
from .storage.files import DRAWING, PAGE, check_output, write_file
from .storage.folders import check_folder

TICKS_FOR_REPORT = 50
LARGE_BYTES = 1e9
"""From here on, reading a bundle takes so long that it is said."""
TITLE = "anchorvla run"
EXAMPLES = {
    "run": "bundle --episodes recorded --report report.html",
    "replay": "episode.zip bundle --report replay.html",
    "check": "bundle --backend tensorrt",
    "bench": "bundle --ticks 200",
    "show": "bundle --svg graph.svg",
    "serve": "bundle --port 8000",
    "trust": "add release.pub",
}
"""What follows the verb in the line that `--help` ends with."""


def main(arguments: list[str] | None = None) -> int:
    """Run a verb; errors that a user can mend become one line and an exit code."""

    def run() -> int:
        options = _parser().parse_args(arguments)
        return int(options.verb(options))

    return finish(run, debug=wants_debug(arguments))


@contextlib.contextmanager
def _loaded(options: argparse.Namespace) -> Iterator[Policy]:
    num_bytes = _bytes_of(options.bundle, options.backend)
    if num_bytes > LARGE_BYTES:
        print(f"{options.bundle}: {num_bytes / 1e9:.1f} GB to verify and load", file=sys.stderr)
    with warnings.catch_warnings(record=True) as seen:
        for kind in (PowerModeWarning, UnmeasuredWarning):
            warnings.simplefilter("always", kind)
        policy = load(
            options.bundle,
            embodiment=options.embodiment,
            backend=options.backend,
            accept_failed_gates=options.accept_failed_gates,
        )
    for warning in seen:
        print(f"warning: {warning.message}", file=sys.stderr)
    with contextlib.closing(policy):
        yield policy


def _bytes_of(bundle: Path, backend: str) -> int:
    """To read, as far as this user may see: engines on a CPU, plans on a GPU."""
    unread = PLANS if backend == "onnxruntime" else "engines"
    return sum(
        os.lstat(Path(at) / name).st_size
        for at, _, names in os.walk(bundle)
        for name in names
        if Path(at).relative_to(bundle).parts[:1] != (unread,)
    )


def _run(options: argparse.Namespace) -> int:
    config = LoopConfig(
        rate_hz=options.rate_hz,
        execute=options.execute,
        max_steps=options.max_steps,
        chunks=options.chunks,
        leaves=parse_leaves(options.leaf),
        checks=LeafChecks(on_perception=options.on_perception),
    )
    if options.report is not None:
        check_output(options.report, PAGE)
    elif options.title is not None:
        raise ValueError("--title is the heading of a page: give --report too")
    if options.num_episodes is not None and not options.tasks:
        raise ValueError("--num-episodes counts episodes of simulator tasks: give --tasks too")
    if options.record is not None:
        check_folder(options.record, foreign)
    elif options.every_step:
        raise ValueError("--every-step says what is recorded: give --record too")
    limits = None if options.limits is None else read_description(options.limits)
    with (
        of_process().watching(),
        _loaded(options) as policy,
        live.watched(options, policy.graph) as scene,
    ):
        return _drive(options, config, policy, limits, scene)


def _drive(
    options: argparse.Namespace,
    config: LoopConfig,
    policy: Policy,
    limits: Description | None,
    scene: EpisodeScene,
) -> int:
    runs: list[Run] = []
    delay: Delay | None = None
    for name, robot in _robots(options, policy.chunk_shape[1]):
        with (
            contextlib.closing(robot),
            live.on_screen(options, scene),
            _recorder(options, name) as recorder,
        ):
            trace = run_episode(
                policy,
                robot,
                config,
                seed=options.seed,
                anchor_policy=anchor.parse_all(options.anchor),
                delay=delay,
                on_step=(lambda step: None) if options.live else _narrate(name),
                watch=scene.begin(name, robot.limits.names),
                limits=limits,
                flight=options.flight,
                recorder=recorder,
            )
        run = Run(name=name, trace=trace)
        if isinstance(robot, ReplayedRobot):
            recorded = robot.recording
            run = replace(run, recorded_NA=recorded.actions, names=recorded.action_names)
        runs.append(run)
        if delay is None and trace.delay is not None:
            print(f"\r{trace.delay.words(config.rate_hz)}: chunks are used {trace.chunks}")
        delay = trace.delay
        verdict = {True: "success", False: "no success", None: "replayed"}[trace.success]
        print(f"\r{name}: {len(trace.steps)} steps, {trace.num_dropped} dropped, {verdict}")
        for words in (*trace.words, *error_lines(trace, policy.outputs)):
            print(f"  {words}")
        if recorder is not None:
            print(f"  recorded: {recorder.path}, {recorder.words}")
    numbers = summarize(policy.graph, [run.trace for run in runs])
    if options.report is not None:
        lines = Progress(sys.stderr)
        lines.step(f"{TICKS_FOR_REPORT} ticks of each kind, for the page")
        timings = measure(policy, TICKS_FOR_REPORT, lambda n: lines.count(n, TICKS_FOR_REPORT))
        lines.close()
        write_report(options.report, policy, runs, timings, config, options.title or TITLE)
        print(f"report: {options.report}")
    line: dict[str, object] = {"warm": asdict(numbers.warm), "cold": asdict(numbers.cold)}
    line |= {"dropped": numbers.num_dropped, "steps": numbers.num_steps}
    line |= {"succeeded": numbers.num_successes, "judged": numbers.num_judged}
    line |= {"age": asdict(numbers.age), "misses": numbers.num_misses}
    line |= {"dropped_actions": numbers.num_overtaken, "stale_answers": numbers.num_stale}
    age = numbers.age
    print(
        f"age of actions when sent: {age.p50:.1f} ms median, {age.p99:.1f} ms p99 of {age.n}; "
        f"{numbers.num_overtaken} actions dropped for their age, {numbers.num_misses} misses"
    )
    line |= {"interventions": dict(numbers.interventions), "noticed": dict(numbers.noticed)}
    line |= errors_as_json([run.trace for run in runs], policy.outputs)
    print(json.dumps(_compact(line)))
    return 0


def _check(options: argparse.Namespace) -> int:
    with _loaded(options) as policy:
        verdicts = policy.check()
    for verdict in verdicts:
        mark = "ok  " if verdict.passed else "FAIL"
        print(f"{mark} {verdict.name:<18} {verdict.error:.1e} (allowed {verdict.allowed:.0e})")
    failed = [verdict for verdict in verdicts if not verdict.passed]
    if failed:
        print(
            f"error: {len(failed)} of {len(verdicts)} differ from the golden data: this machine "
            "computes something else than the exporter's; do not drive a robot with it",
            file=sys.stderr,
        )
    return 1 if failed else 0


def _bench(options: argparse.Namespace) -> int:
    if options.ticks < 1:
        raise ValueError(f"--ticks must be at least 1, got {options.ticks}")
    with _loaded(options) as policy:
        lines = Progress(sys.stderr)
        lines.step(f"{options.ticks} ticks of each kind")
        timings = measure(policy, options.ticks, lambda done: lines.count(done, options.ticks))
        lines.close()
    for kind, timing in timings.items():
        print(
            f"{kind}: {timing.tick.p50:.2f} ms median, {timing.tick.p99:.2f} ms p99 of "
            f"{timing.tick.n}; outside engines {timing.overhead.p50:.3f} ms, "
            f"{timing.interpreter.p50:.3f} ms of them the interpreter"
        )
        for name, stage in timing.stages.items():
            print(f"  {name:<18} {stage.p50:9.3f} ms  p99 {stage.p99:9.3f}")
    print(f"start-up: {policy.start_up_s:.2f} s, {policy.bytes_read / 1e6:.1f} MB of files read")
    line: dict[str, object] = {
        kind: {
            "tick": asdict(t.tick),
            "overhead": asdict(t.overhead),
            "interpreter": asdict(t.interpreter),
        }
        for kind, t in timings.items()
    }
    line["start_up"] = {"seconds": policy.start_up_s, "bytes_read": policy.bytes_read}
    line["way_to_wait"] = policy.backend.waits
    print(json.dumps(_compact(line)))
    return 0


def _show(options: argparse.Namespace) -> int:
    if options.svg is not None:
        check_output(options.svg, DRAWING)
    bundle = read_bundle(options.bundle)
    print(describe(bundle, brief=options.brief))
    if options.svg is not None:
        write_file(options.svg, standalone(draw(bundle.manifest.graph)), DRAWING)
        print(f"\npicture: {options.svg}")
    return 0


def _build(options: argparse.Namespace) -> int:
    """Plans are compared and inspected where they can run: not for a GPU that is not here."""
    if options.capability is not None:
        return build_command.main_build(options)
    from .backends.tensorrt import inspect_plan

    bundle, name = read_bundle(options.bundle), options.backend
    return build_command.main_build(
        options,
        bundle=bundle,
        check_engine=lambda onnx, plan: plan_errors(bundle, onnx, plan, name=name),
        inspect_engine=lambda plan: inspect_plan(plan, name=name),
    )


def _serve(options: argparse.Namespace) -> int:
    with of_process().watching():
        return serve_command.main_serve(options, lambda: _loaded(options), LivePage())


def _replay(options: argparse.Namespace) -> int:
    return replay_command.main_replay(options, lambda: _loaded(options))


def _robots(options: argparse.Namespace, num_actions: int) -> Iterator[tuple[str, Robot]]:
    if not options.episodes and not options.tasks:
        raise RecordingError(
            "nothing to run: name recordings or LeRobot datasets with --episodes, or simulator "
            "tasks with --tasks"
        )
    for name, recording in read_recordings(options.episodes, options.camera, options.max_steps):
        yield name, ReplayedRobot(recording, num_actions)
    for task in options.tasks:
        from .robots.metaworld import MetaWorldRobot

        for number in range(options.num_episodes or 1):
            seed = options.seed + number
            yield f"{task} live, seed {seed}", MetaWorldRobot(task=task, seed=seed)


def _recorder(
    options: argparse.Namespace, name: str
) -> contextlib.AbstractContextManager[Recorder | None]:
    if options.record is None:
        return contextlib.nullcontext()
    return Recorder(free_path(options.record, name), every_step=options.every_step)


def _narrate(name: str) -> Callable[[Step], None]:
    """Every step where somebody watches, a line on standard error now and then elsewhere."""
    count, told = 0, time.monotonic()

    def narrate(step: Step) -> None:
        nonlocal count, told
        count += 1
        if sys.stdout.isatty():
            print(f"\r{name}: step {count}", end="", flush=True)
        elif time.monotonic() - told >= PERIOD_S:
            told = time.monotonic()
            print(f"{name}: step {count}", file=sys.stderr, flush=True)

    return narrate


def _compact(value: object) -> object:
    """Three decimals are enough for milliseconds."""
    if isinstance(value, float):
        return round(value, 3)
    if isinstance(value, dict):
        return {key: _compact(item) for key, item in value.items()}
    return value


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="anchorvla", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    verbs = parser.add_subparsers(required=True, metavar="VERB")
    loading = argparse.ArgumentParser(add_help=False)
    loading.add_argument("--embodiment", help="key of the statistics, where there are several")
    loading.add_argument(
        "--accept-failed-gates",
        action="store_true",
        help="run a bundle too whose export was forced",
    )
    loading.add_argument(
        "--backend",
        choices=list(BACKENDS),
        default="onnxruntime",
        help="what computes (default onnxruntime; tensorrt needs anchorvla build once)",
    )
    common = argparse.ArgumentParser(add_help=False, parents=[loading])
    common.add_argument("bundle", type=Path, metavar="BUNDLE")

    run = verbs.add_parser("run", parents=[common], help="drive episodes and report")
    run.add_argument(
        "--episodes",
        type=Path,
        nargs="+",
        default=[],
        help="recordings, folders of them, or LeRobot datasets",
    )
    run.add_argument("--camera", help="key of the camera in a LeRobot dataset that has several")
    run.add_argument("--tasks", nargs="+", default=[], help="tasks of the simulator, run live")
    run.add_argument("--num-episodes", type=int, help="live ones per task (default 1)")
    run.add_argument("--rate-hz", type=float, default=10.0, help="actions per second (default 10)")
    run.add_argument("--execute", type=int, default=5, help="actions per thought (default 5)")
    run.add_argument(
        "--chunks",
        choices=CHUNKS,
        default="sync",
        help="wait for every chunk (sync, the default), think out the next one meanwhile (async), "
        "likewise and going on from what is carried out meanwhile (rtc), or what the delay "
        "measured here allows (auto)",
    )
    run.add_argument(
        "--leaf",
        action="append",
        default=[],
        metavar="NAME=HERTZ",
        help="read this output so often in time that is left over; NAME=HERTZ,SECONDS skips it "
        "where it would come later than that",
    )
    run.add_argument(
        "--on-perception",
        choices=get_args(Answers),
        default="warn",
        help="what to do if a leaf sees joints elsewhere than they are felt (default warn)",
    )
    run.add_argument("--max-steps", type=int, default=1000, help="actions per episode at most")
    run.add_argument("--anchor", action="append", default=[], metavar="POLICY", help=anchor.WORDS)
    run.add_argument("--seed", type=int, default=0, help="of the action noise and the simulator")
    run.add_argument(
        "--limits", type=Path, help="robot description that the guard keeps (docs/guard.md)"
    )
    run.add_argument(
        "--flight",
        type=Path,
        default=Path("flight"),
        help="folder for the last ticks before the guard stops a robot (default flight)",
    )
    live.add_arguments(run)
    run.add_argument("--record", type=Path, help="folder for a journal of each episode, to replay")
    run.add_argument(
        "--every-step",
        action="store_true",
        help="look at the robot at every step for it, and not only to think: what a dataset needs",
    )
    run.add_argument("--report", type=Path, help="write an HTML page here")
    run.add_argument("--title", help=f"heading of the page (default {TITLE!r})")
    run.set_defaults(verb=_run)

    verb = verbs.add_parser("replay", parents=[loading], help="compare with a recorded run")
    replay_command.add_arguments(verb)
    verb.set_defaults(verb=_replay)
    verb = verbs.add_parser("check", parents=[common], help="compare with the golden data")
    verb.set_defaults(verb=_check)
    bench = verbs.add_parser("bench", parents=[common], help="time it here")
    bench.add_argument("--ticks", type=int, default=100, help="of each kind (default 100)")
    bench.set_defaults(verb=_bench)
    show = verbs.add_parser("show", help="print the graph")
    show.add_argument("bundle", type=Path, metavar="BUNDLE")
    show.add_argument("--svg", type=Path, help="draw it here")
    show.add_argument("--brief", action="store_true", help="leave out stages and tensors")
    show.set_defaults(verb=_show)
    verb = verbs.add_parser("serve", parents=[common], help="answer openpi's clients")
    serve_command.add_arguments(verb)
    verb.set_defaults(verb=_serve)
    verb = verbs.add_parser("build", help="compile it for this machine's GPU")
    build_command.add_arguments(verb)
    verb.set_defaults(verb=_build)
    verb = verbs.add_parser("doctor", help="what keeps this machine from running a policy")
    doctor.add_arguments(verb)
    verb.set_defaults(verb=doctor.main_doctor)
    trust.add_arguments(verbs.add_parser("trust", help="whose releases this machine runs"))
    for name, verb in verbs.choices.items():
        verb.add_argument("--debug", action="store_true", help="show the traceback of an error")
        verb.epilog = f"example: anchorvla {name} {EXAMPLES.get(name, 'bundle')}"
    return parser


if __name__ == "__main__":
    sys.exit(main())
