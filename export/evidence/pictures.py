"""A tick of a policy that remembers pictures: warm, recomputed, and as public libraries compose it.

One process, rows interleaved. Per configuration `eager` and `compiled`: the composition, plain and
under torch.compile, which knows no ticks. Per number of different pictures that the prompt shows
`recomputed`: our runtime with nothing kept, and `warm`: the tick as an episode has it. That is the
episode's first tick where all pictures are the same one, and a usual tick otherwise: the picture of
now is new, those of the past were asked about when they were new, the first one and the keyframes
stayed.

Beside each stands the limit of an exact cache, see `export.evidence.limits`. A prompt is padded to
the slots of its bundle, so each number of pictures is measured on a bundle with room for no more.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from rich.console import Console

from export.errors import ExportError
from export.evidence.bench import Timed, interleaved, machine, slug
from export.evidence.config import PicturesConfig
from export.evidence.limits import engine_flops, kinds, least_flops
from export.evidence.pictures_table import pictures_table
from export.evidence.subject import Subject, check_names
from export.forecast.config import ForecastConfig
from export.forecast.policy import SizedPolicy, size_policy
from models.families import family_of
from runtime.cli.progress import Progress
from runtime.declarations import from_source
from runtime.golden import Golden, vary
from runtime.graph import Cone
from runtime.pages.report import processor_name
from runtime.policy import Policy
from runtime.storage.files import Kind, check_output, write_file

FIGURES = Kind("figures of ticks by pictures", (b'"machine"', b'"ticks"', b'"limits"'))
MOST_TICKS = 100
"""Of an episode until it has as many keyframes as there may be."""
WAYS = {"recomputed": True, "warm": False}
"""Rows of our runtime, and whether everything is forgotten before."""
Figures = dict[str, Any]
Rows = dict[str, Callable[[], Any]]


def bench_pictures(config: PicturesConfig) -> Figures:
    """Run it, print the table and one JSON line last.

    Raises:
        OutputError: the results cannot be written.
        ValueError: a policy remembers no pictures, or there is no such configuration.
    """
    check_names(config.configs)
    limits = [_limits(name, config.image) for name in config.limits]
    path = None
    if config.results is not None:
        path = config.results / f"pictures-{slug(processor_name())}.json"
        check_output(path, FIGURES)
    console, lines = Console(), Progress(sys.stderr)
    subjects = [
        Subject.make(name, config.work, config.image, console, _check_remembers)
        for name in config.configs
    ]
    cases = [case for subject in subjects for case in cases_of(subject)]
    rows, before = _rows(subjects, cases)
    lines.step("actions beside those of the libraries")
    errors = {case.name: case.parity() for case in cases}
    for case in cases:  # compilers, allocators, caches have their first time here
        lines.step(f"first ticks, {case.name}")
        case.count_towers()
    for subject in subjects:
        for row, run in subject.libraries.items():
            lines.step(f"{subject.name}: first run, {row}")
            run()
    lines.step("ticks of each row")
    timed = interleaved(rows, before, config.rounds, lines.count)
    lines.close()
    found: Figures = {
        "machine": machine(),
        "image_size": [config.image, config.image],
        "rounds": config.rounds,
        "configs": {subject.name: subject.describe() for subject in subjects},
        "ticks": [case.figures(timed) | {"error": errors[case.name]} for case in cases],
        "limits": limits,
    }
    if path is not None:
        write_file(path, json.dumps(found, indent=1) + "\n", FIGURES)
        console.print(f"written: {path}")
    print(pictures_table(found))
    print(json.dumps({c["different"]: c["warm_ms"] for c in found["ticks"]}))
    return found


def _rows(subjects: Sequence[Subject], cases: Sequence[Case]) -> tuple[Rows, Rows]:
    """What is timed, by name; and of some what is done before and not timed."""
    rows: Rows = {}
    before: Rows = {}
    for subject in subjects:
        rows |= {f"{subject.name}/{row}": run for row, run in subject.libraries.items()}
    for case in cases:
        for row, is_cold in WAYS.items():
            rows[f"{case.name}/{row}"] = partial(case.tick, cold=is_cold)
            before[f"{case.name}/{row}"] = case.prepare
    return rows, before


def _check_remembers(policy: SizedPolicy) -> None:
    if not policy.graph.stores:
        raise ValueError(f"{policy.name}: this policy remembers no pictures: nothing to measure")


def cases_of(subject: Subject) -> Iterator[Case]:
    """The first tick, where that has room for no picture more; and a usual one."""
    script = Script(subject.policy)
    if not from_source(subject.policy.inputs, "memory"):
        yield Case(subject, script, "first")
    yield Case(subject, script, "usual")


class Script:
    """An episode whose camera shows a new picture whenever the policy is asked: as often as every
    delay allows that what it shows was asked about."""

    def __init__(self, policy: Policy) -> None:
        golden = Golden.of(policy.bundle)
        self._policy, self._seen, self._count = policy, golden.observed, 0
        self.told = {name: golden.given[name] for name in from_source(policy.inputs, "operator")}
        delays = [delay.steps for delay in from_source(policy.inputs, "delay").values()]
        self._stride, self._longest = math.gcd(*delays), max(delays)
        policy.forget()  # pictures of this very script, that another episode was shown
        self.begin()

    def begin(self) -> None:
        """Another episode."""
        self._episode, self._step = self._policy.start(**self.told), 0

    def tick(self) -> None:
        """Ask the policy about a new picture."""
        self._count += 1
        self._now = vary(self._policy.inputs, self._seen, self._count)
        self.actions = self._episode.act(self._now).actions

    def wait(self) -> None:
        """Carry out what was answered, up to the step before the next question."""
        for _ in range(self._stride - 1):
            self._episode.see(self._now)
        self._step += self._stride

    def settle(self) -> None:
        """A tick, and as many as it takes until every picture that the next one shows was asked
        about, and there is a keyframe in every slot."""
        inputs = self._policy.inputs
        for _ in range(MOST_TICKS):
            self.tick()
            self.wait()
            counts = [n for n, declared in inputs.items() if declared.memory is not None]
            slots = len([n for n in from_source(inputs, "memory") if n not in counts])
            kept = sum(int(self._policy.interpreter.values[n][0]) for n in counts)
            if self._step > self._longest and kept == slots:
                return
        raise ExportError(
            f"{self._policy.bundle.path}: {kept} of {slots} keyframes after {MOST_TICKS} ticks: "
            "lower the threshold of its events"
        )


@dataclass(frozen=True, eq=False)
class Case:
    """A kind of tick of a configuration."""

    subject: Subject
    script: Script
    kind: str
    """See `export.evidence.limits.kinds`."""
    towers: dict[str, int] = field(default_factory=dict)
    """By the way: pictures that passed the vision tower in the last such tick."""

    @property
    def name(self) -> str:
        return f"{self.subject.name}, {self.kind}"

    @property
    def cones(self) -> list[Cone]:
        """Of the pictures that the prompt shows."""
        return [c for cones in self.subject.policy.graph.cones.values() for c in cones]

    def prepare(self) -> None:
        """What is done before a tick and not timed."""
        if self.kind == "first":
            self.script.tick()
            self.script.begin()
        else:
            self.script.settle()

    def tick(self, *, cold: bool) -> None:
        """
        Args:
            cold: with everything forgotten.
        """
        if cold:
            self.subject.policy.forget()
        self.script.tick()

    def count_towers(self) -> None:
        """By running a tick of each way."""
        graph = self.subject.policy.graph
        last = [graph.stages[cone.stages[-1]].name for cone in self.cones]
        for way, is_cold in WAYS.items():
            self.prepare()
            self.tick(cold=is_cold)
            self.towers[way] = len(self.subject.policy.interpreter.last_run.keys() & {*last})

    def parity(self) -> float:
        """Of a warm tick's actions, in robot units, with those of the libraries."""
        self.prepare()
        self.tick(cold=False)
        return self.subject.error(self.script.actions, self.script.told)

    def figures(self, timed: Timed) -> Figures:
        """Times, ratios, and what the arithmetic allows."""
        subject, found = self.subject, dict[str, Any]()
        named = {row: timed[f"{self.name}/{row}"] for row in WAYS}
        for row in subject.libraries:
            named[row] = timed[f"{subject.name}/{row}"]
        for row, quantiles in named.items():
            found |= {
                f"{row}_ms": round(quantiles.p50, 3), f"{row}_p99_ms": round(quantiles.p99, 3)
            }  # fmt: skip
        warm = named.pop("warm").p50
        inputs = subject.policy.inputs
        cones = self.cones
        keyframes = len([cone for cone in cones if inputs[cone.source].source == "memory"])
        cameras = len({inputs[cone.source].of or cone.source for cone in cones})
        return found | {
            "config": subject.name,
            "kind": self.kind,
            "pictures": len(cones),
            "different": cameras if self.kind == "first" else len(cones),
            "keyframes": keyframes,
            "towers": self.towers,
            "speedup": {row: round(quantiles.p50 / warm, 3) for row, quantiles in named.items()},
            **limit(subject.sized, self.kind),
        }


def limit(policy: SizedPolicy, kind: str) -> Figures:
    """FLOPs of a tick of a kind and of recomputing, and what follows."""
    ticks = kinds(policy.graph)
    least, everything = least_flops(policy, ticks[kind]), least_flops(policy, ticks["all"])
    ours, padded = engine_flops(policy, ticks[kind]), engine_flops(policy, ticks["all"])
    return {
        "gflops": {network: round(flops / 1e9, 3) for network, flops in least.items()},
        "recomputed_gflops": {n: round(flops / 1e9, 3) for n, flops in everything.items()},
        "vision_share": round(everything["vision"] / sum(everything.values()), 4),
        "limit": round(sum(everything.values()) / sum(least.values()), 3),
        "padded_limit": round(sum(padded.values()) / sum(ours.values()), 3),
    }


def _limits(name: str, image: int) -> Figures:
    """Of a policy that is not run, by the published tokenizer's lengths."""
    policy = size_policy(ForecastConfig(config=name, image_size=(image, image)))
    return {
        "config": name,
        "layers": family_of(policy.config).depths(policy.config),
        "pictures": sum(len(cones) for cones in policy.graph.cones.values()),
        "tokens": {call: tokens.new for call, tokens in policy.used.items()},
        "kinds": {kind: limit(policy, kind) for kind in ("usual", "waited", "keyframe")},
    }
