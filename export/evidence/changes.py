"""A tick in which one input changed: what the rule of dependencies leaves to do of it.

One process, rows interleaved. Per configuration `eager` and `compiled`: the composition of public
libraries, plain and under torch.compile, which knows no ticks; `all`: our runtime with nothing kept
and every input new; `tick`: everything new that the robot and the sampler change in every tick; and
each input alone. Beside each stand the FLOPs that its engines compute, padding included. `leaf`:
an output that no action needs, asked for behind a tick of everything, and what runs for it.
"""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from export.evidence.bench import Timed, interleaved, machine, slug
from export.evidence.changes_table import changes_table
from export.evidence.config import ChangesConfig
from export.evidence.limits import Tick, engine_flops, leaf_flops
from export.evidence.subject import Subject, check_names
from export.tokens import MADE_UP_INSTRUCTION
from runtime.cli.progress import Progress
from runtime.declarations import from_source
from runtime.golden import Golden, vary
from runtime.inputs import draw_noise
from runtime.pages.report import processor_name
from runtime.storage.files import Kind, check_output, write_file

FIGURES = Kind("figures of ticks by what changed", (b'"machine"', b'"changes"'))
INSTRUCTIONS = (MADE_UP_INSTRUCTION, " ".join(reversed(MADE_UP_INSTRUCTION.split())))
"""In turn, as long as each other."""
Figures = dict[str, Any]


def bench_changes(config: ChangesConfig) -> Figures:
    """Run it, print the table and one JSON line last.

    Raises:
        OutputError: the results cannot be written.
        ValueError: there is no such configuration.
    """
    check_names(config.configs)
    path = None
    if config.results is not None:
        path = config.results / f"changes-{slug(processor_name())}.json"
        check_output(path, FIGURES)
    console, lines = Console(), Progress(sys.stderr)
    subjects = [Subject.make(name, config.work, config.image, console) for name in config.configs]
    episodes = [Changing(subject) for subject in subjects]
    ticks = [tick for episode in episodes for tick in ticks_of(episode)]
    leaves = [leaf for episode in episodes for leaf in leaves_of(episode)]
    measured: list[Ticking | Asking] = [*ticks, *leaves]
    rows: dict[str, Callable[[], Any]] = {row.name: row.run for row in measured}
    before = {row.name: row.prepare for row in measured}
    lines.step("actions beside those of the libraries")
    errors = {tick.name: tick.error() for tick in ticks}
    for subject in subjects:
        for row, run in subject.libraries.items():
            lines.step(f"{subject.name}: first run, {row}")
            rows[f"{subject.name}/{row}"] = run
            run()
    lines.step("ticks of each row")
    timed = interleaved(rows, before, config.rounds, lines.count)
    lines.close()
    found: Figures = {
        "machine": machine(),
        "image_size": [config.image, config.image],
        "rounds": config.rounds,
        "configs": {
            subject.name: subject.describe()
            | {
                f"{row}_ms": round(timed[f"{subject.name}/{row}"].p50, 3)
                for row in subject.libraries
            }
            for subject in subjects
        },
        "changes": [
            figures(tick, timed) | {"error": errors[tick.name], "stages": tick.stages}
            for tick in ticks
        ],
        "leaves": [leaf_figures(leaf, timed) for leaf in leaves],
    }
    if path is not None:
        write_file(path, json.dumps(found, indent=1) + "\n", FIGURES)
        console.print(f"written: {path}")
    print(changes_table(found))
    print(json.dumps({tick["name"]: tick["ms"] for tick in found["changes"]}))
    return found


class Changing:
    """An episode whose inputs are changed by name; what is not named stays as it was."""

    def __init__(self, subject: Subject) -> None:
        policy = subject.policy
        golden = Golden.of(policy.bundle)
        self.subject, self.policy, self._count = subject, policy, itertools.count(1)
        self._golden = dict(golden.observed)
        self.texts = [n for n, i in from_source(policy.inputs, "operator").items() if i.prompt]
        self.told = dict.fromkeys(self.texts, INSTRUCTIONS[0])
        self.drawn = from_source(policy.inputs, "drawn")
        self._given: dict[str, NDArray[Any]] = {**golden.observed, **golden.drawn}
        self._episode = policy.start(**{**golden.given, **self.told})

    @property
    def inputs(self) -> tuple[str, ...]:
        """That can be changed: what the operator says, what the robot sees and feels, noise."""
        return (*self._golden, *self.texts, *self.drawn)

    def change(self, names: frozenset[str]) -> None:
        """Give these inputs another value than they ever had, a text the other one."""
        count = next(self._count)
        varied = vary(self.policy.inputs, self._golden, count)
        self._given |= {name: varied[name] for name in names & varied.keys()}
        for name in names & self.drawn.keys():
            self._given[name] = draw_noise(count, 0, self.drawn[name].shape)
        for name in names & set(self.texts):
            self.told[name] = next(text for text in INSTRUCTIONS if text != self.told[name])
            self._episode.give(**{name: self.told[name]})

    def act(self) -> NDArray[np.float32]:
        """[T, A] in robot units."""
        return self._episode.act(self._given).actions

    def ask(self, leaf: str) -> NDArray[Any]:
        """An output of the last observation."""
        return self._episode.ask(leaf)


@dataclass(eq=False)
class Ticking:
    """A kind of tick of a configuration."""

    episode: Changing
    kind: str
    changed: frozenset[str]
    is_cold: bool = False
    stages: int = 0
    """Calls of engines that the last one ran."""

    @property
    def subject(self) -> Subject:
        return self.episode.subject

    @property
    def name(self) -> str:
        return f"{self.subject.name}/{self.kind}"

    def prepare(self) -> None:
        """What is done before a tick and not timed: one of everything, and the change."""
        self.episode.change(frozenset(self.episode.inputs))
        self.episode.act()
        self.episode.change(self.changed)

    def run(self) -> NDArray[np.float32]:
        """The tick."""
        if self.is_cold:
            self.subject.policy.forget()
        return self.episode.act()

    def error(self) -> float:
        """Of one against the libraries; counts its stages by the way."""
        self.prepare()
        actions = self.run()
        graph = self.subject.policy.graph
        engines = {stage.name for stage in graph.stages if stage.engine is not None}
        self.stages = len(engines & self.subject.policy.interpreter.last_run.keys())
        return self.subject.error(actions, self.episode.told)


@dataclass(eq=False)
class Asking:
    """A leaf of a configuration, asked for behind a tick of everything."""

    episode: Changing
    leaf: str

    @property
    def subject(self) -> Subject:
        return self.episode.subject

    @property
    def name(self) -> str:
        return f"{self.subject.name}/leaf {self.leaf}"

    def prepare(self) -> None:
        """A tick, which is not timed."""
        self.episode.change(frozenset(self.episode.inputs))
        self.episode.act()

    def run(self) -> NDArray[Any]:
        return self.episode.ask(self.leaf)


def ticks_of(episode: Changing) -> Iterator[Ticking]:
    """Everything, what changes in every tick, and each input alone."""
    inputs = episode.policy.inputs
    every = frozenset(n for n in episode.inputs if inputs[n].pace == "tick")
    yield Ticking(episode, "all", frozenset(episode.inputs), is_cold=True)
    yield Ticking(episode, "tick", every)
    for name in episode.inputs:
        yield Ticking(episode, name, frozenset({name}))


def leaves_of(episode: Changing) -> list[Asking]:
    """All outputs but the actions."""
    graph = episode.policy.graph
    return [Asking(episode, name) for name in graph.outputs if name != graph.target]


def leaf_figures(asking: Asking, timed: Timed) -> Figures:
    """Its time, also as a share of a usual tick's, and what is computed for it."""
    mine, tick = timed[asking.name], timed[f"{asking.subject.name}/tick"]
    flops = leaf_flops(asking.subject.sized, asking.leaf)
    return {
        "name": asking.name,
        "config": asking.subject.name,
        "leaf": asking.leaf,
        "ms": round(mine.p50, 3),
        "p99_ms": round(mine.p99, 3),
        "of_a_tick": round(mine.p50 / tick.p50, 4),
        "gflops": {network: round(n / 1e9, 6) for network, n in flops.items()},
    }


def figures(tick: Ticking, timed: Timed) -> Figures:
    """Times, ratios, and what is computed."""
    subject = tick.subject
    mine, others = timed[tick.name], [f"{subject.name}/all"]
    others += [f"{subject.name}/{row}" for row in subject.libraries]
    flops: Mapping[str, int] = engine_flops(
        subject.sized, Tick(changed=tick.changed, unseen=tick.changed, is_cold=tick.is_cold)
    )
    return {
        "name": tick.name,
        "config": subject.name,
        "kind": tick.kind,
        "ms": round(mine.p50, 3),
        "p99_ms": round(mine.p99, 3),
        "speedup": {row.rpartition("/")[2]: round(timed[row].p50 / mine.p50, 3) for row in others},
        "gflops": {network: round(n / 1e9, 3) for network, n in flops.items()},
    }
