"""anchorvla replay: recorded runs once more, compared to the bit, and drawn."""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Callable
from pathlib import Path

from ..cli.command import FAILED
from ..cli.progress import Progress
from ..control.replay import Replay, replay
from ..policy import Policy
from ..recordings.journal import Journal
from ..recordings.rerun_file import RERUN, check_rerun, write_rerun
from ..storage.files import PAGE, check_output, write_file
from .replayed import draw_replays, origin


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "episodes",
        type=Path,
        nargs="+",
        metavar="EPISODE",
        help="journals that anchorvla run --record wrote",
    )
    parser.add_argument("bundle", type=Path, metavar="BUNDLE")
    parser.add_argument("--report", type=Path, help="write a page here: predicted and recorded")
    parser.add_argument(
        "--rerun", type=Path, help="write an .rrd for the rerun viewer here, of one episode"
    )


def main_replay(
    options: argparse.Namespace,
    loaded: Callable[[], contextlib.AbstractContextManager[Policy]],
) -> int:
    """0 where every bit is as recorded, 1 otherwise."""
    if options.report is not None:
        check_output(options.report, PAGE)
    if options.rerun is not None:
        if len(options.episodes) > 1:
            raise ValueError(f"--rerun is of one episode, got {len(options.episodes)}")
        check_output(options.rerun, RERUN)
        check_rerun(options.rerun)
    with contextlib.ExitStack() as stack:
        journals = [
            stack.enter_context(contextlib.closing(Journal(path))) for path in options.episodes
        ]
        policy = stack.enter_context(loaded())
        done = []
        for journal in journals:
            done.append(_replay(journal, policy))
        if options.report is not None:
            page = draw_replays(policy, list(zip(journals, done, strict=True)))
            write_file(options.report, page, PAGE)
            print(f"report: {options.report}")
        if options.rerun is not None:
            write_rerun(journals[0], done[0].due, options.rerun)
            print(f"rerun: {options.rerun}")
    return 0 if all(one.is_exact for one in done) else FAILED


def _replay(journal: Journal, policy: Policy) -> Replay:
    lines = Progress(sys.stderr)
    total = len(journal.named("act"))
    lines.step(f"{journal.path.name}: {total} thoughts")
    done = replay(journal, policy, lambda number: lines.count(number, total))
    lines.close()
    print(f"{journal.path}: {origin(journal, policy)}")
    told = ", ".join(f"{count} {method}" for method, count in done.told.items())
    print(f"  told: {told}")
    print(f"  thoughts: {_verdict(done.num_thoughts, done.num_other)}")
    if done.thought is not None:
        print(
            f"  first difference: thought {done.thought.number}, {done.thought.words}; the largest "
            f"of all is {done.largest:.3g}"
        )
    print(
        f"  sent through executor and guard, control ticks: "
        f"{_verdict(done.num_ticks, done.num_other_ticks)}"
    )
    if done.tick is not None:
        print(f"  first difference: tick {done.tick.number}, {done.tick.words}")
    if journal.about["error"]:
        print(f"  the run ended with {journal.about['error']}")
    return done


def _verdict(count: int, num_other: int) -> str:
    return f"{num_other} of {count} differ" if num_other else f"all {count} bit for bit as recorded"
