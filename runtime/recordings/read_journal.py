"""A journal as a recording: what was seen and sent at every control step.

The trade-off: a recording is pictures, states and actions; what the guard said, and when, is left
behind in the journal.

N = control step at which an action was sent, A = action dimension.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import RecordingError
from .journal import Journal
from .recording import Recording, Stream


def recording_of(journal: Journal) -> Recording:
    """
    Raises:
        RecordingError: it was not looked at in every step, the instruction changed, or it has
            inputs that are neither pictures nor vectors.
    """
    about, ticks = journal.about, journal.ticks[journal.ticks["sent"]]
    if not len(ticks):
        raise RecordingError(f"{journal.path}: no action was sent in it; leave it out")
    missed = int((np.diff(ticks["look"]) == 0).sum())
    if missed:
        raise RecordingError(
            f"{journal.path}: the robot was not looked at in {missed} of {len(ticks)} steps; "
            "record with --every-step, or leave the episode out"
        )
    said = {about["instruction"], *_texts(journal)}
    if len(said) > 1:
        raise RecordingError(
            f"{journal.path}: has {len(said)} instructions, {sorted(said)}; a recording has one: "
            "leave it out"
        )
    events = journal.named("look")
    looks = [events[number] for number in ticks["look"]]
    names = tuple(about["robot"]["names"])
    starts = journal.named("start")
    return Recording(
        instruction=about["instruction"],
        task="",
        seed=int(starts[0]["seed"]) if starts else 0,
        rate_hz=float(about["loop"]["rate_hz"]),
        streams={name: _stream(journal, name, looks) for name in about["robot"]["inputs"]},
        actions=np.ascontiguousarray(ticks["command"]),
        action_names=names if all(names) else None,
        success=about.get("success"),
    )


def _texts(journal: Journal) -> set[str]:
    """Instructions that it was told later."""
    told = (journal.value(event["values"]) for event in journal.named("told"))
    named = (v for values in told for name, v in values.items() if name != "name")
    return {value for value in named if isinstance(value, str)}


def _stream(journal: Journal, name: str, looks: list[dict[str, Any]]) -> Stream:
    kind = journal.about["robot"]["inputs"][name]["kind"]
    if kind not in ("image", "vector"):
        raise RecordingError(
            f"{journal.path}: input {name!r} is {kind}, a recording has pictures and vectors; "
            "leave it out"
        )
    values: NDArray[Any] = np.stack([journal.value(look["values"][name]) for look in looks])
    at_s = np.array([look["at_s"][name] for look in looks], np.float64)
    if kind == "vector":
        return Stream(values=values, at_s=at_s)
    # A camera that numbers nothing shows a picture of its own at every look.
    ids = [look["frame_ids"].get(name, number) for number, look in enumerate(looks)]
    return Stream(values=values, at_s=at_s, frame_ids=np.array(ids, np.int64))
