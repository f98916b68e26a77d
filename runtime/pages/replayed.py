"""Recorded runs beside what their policy answers now, as one HTML page.

A = action dimension.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from hashlib import sha256

import numpy as np
from numpy.typing import NDArray

from ..bundle import MANIFEST
from ..control.replay import Replay
from ..control.trace import Step, Trace
from ..policy import Policy
from ..recordings.journal import Journal
from ..robots.robot import Observation
from .imitation import Run, action_charts, error_table
from .markup import Markup, element
from .page import document, panel, section, sentence
from .report import action_scales

EXPLAINED = (
    "Predicted is what is due by the chunks that the policy answers now; recorded is what was "
    "sent. They differ where the guard intervened, and where the policy computes other bits."
)
TITLE = "anchorvla replay"


def draw_replays(policy: Policy, replays: Sequence[tuple[Journal, Replay]]) -> str:
    """The page as text."""
    units, scales = action_scales(policy)
    runs = [_run(journal, done) for journal, done in replays]
    errors = error_table([run for run in runs if run.trace.steps], units)
    parts = [
        *([section("Predicted against sent", *errors, sentence(EXPLAINED))] if errors else []),
        element("h2", "Episodes"),
        *(
            _episode(policy, journal, done, run, units, scales)
            for (journal, done), run in zip(replays, runs, strict=True)
        ),
    ]
    return document(TITLE, parts)


def origin(journal: Journal, policy: Policy) -> str:
    """What recorded it, and whether that is what runs now."""
    recorded, versions = journal.about["policy"], journal.about["versions"]
    if recorded is None:
        return "recorded with a policy of no bundle"
    path = policy.bundle.path / MANIFEST
    is_same = recorded["manifest_sha256"] == sha256(path.read_bytes()).hexdigest()
    words = f"recorded with {recorded['recipe']} on {recorded['backend']}"
    words += f" {versions.get(recorded['backend'], '')}".rstrip() + f", {versions['machine']}"
    words += "" if is_same else "; this is another bundle than the recorded one"
    return words + (
        "" if recorded["backend"] == policy.backend.name else f", and runs on {policy.backend.name}"
    )


def _run(journal: Journal, done: Replay) -> Run:
    """Ticks in which something was due and something was sent."""
    about = journal.about
    looks = journal.named("look")[:1]
    first = Observation(journal.value(looks[0]["values"]), looks[0]["at_s"], looks[0]["frame_ids"])
    trace = Trace(about["instruction"], 1 / about["loop"]["rate_hz"], first)
    sent: list[NDArray[np.float32]] = []
    for tick, due_A in zip(journal.ticks, done.due, strict=False):
        if due_A is None or not tick["sent"]:
            continue
        think_s = float(tick["think_s"]) if tick["fresh"] else None
        said = journal.interventions[int(tick["said"])]
        command_A = tick["command"]
        trace.steps.append(
            Step(float(tick["late_s"]), think_s, {}, due_A, command_A, float(tick["age_s"]), said)
        )
        sent.append(command_A)
    names = tuple(about["robot"]["names"])
    recorded_NA = np.stack(sent) if sent else None
    return Run(
        name=journal.path.name,
        trace=trace,
        recorded_NA=recorded_NA,
        names=names if all(names) else None,
    )


def _episode(
    policy: Policy,
    journal: Journal,
    done: Replay,
    run: Run,
    units: Sequence[str],
    scales: Sequence[float],
) -> Markup:
    same = done.num_thoughts - done.num_other
    words = f" \u00b7 {run.name} \u00b7 {same} of {done.num_thoughts} thoughts bit for bit"
    words += f" \u00b7 {done.num_ticks - done.num_other_ticks} of {done.num_ticks} commands"
    said = Counter(kind for step in run.trace.steps for kind in step.interventions)
    found = [
        f"{name}: {one.number}, {one.words}."
        for name, one in (
            ("First thought that differs", done.thought),
            ("First control tick that differs", done.tick),
        )
        if one is not None
    ]
    return panel(
        element("h3", f"\u201c{run.trace.instruction}\u201d", element("span", words, class_="sub")),
        sentence(f"Was {origin(journal, policy)}."),
        *map(sentence, found),
        *([sentence(_interventions(said))] if said else []),
        *([action_charts(run, units, scales)] if run.trace.steps else []),
    )


def _interventions(said: Counter[str]) -> str:
    kinds = ", ".join(f"{kind} {count} times" for kind, count in said.most_common())
    return f"The guard intervened: {kinds}."
