"""What an operator sees of a served policy. The robot is elsewhere, and so are its guard and its
clock: what is told is what was asked, when, and how long an answer took."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from itertools import zip_longest
from typing import Any, Protocol

import numpy as np

from ..sight import SHOWN_S, Figure, Sight, Stop, counted, named, of_networks, quantiles_ms
from .lease import Lease
from .session import Answered, Session

RATE_S = 5.0
"""The rate is counted over so long."""


class Served(Protocol):
    """Of a server, what is shown of it."""

    lease: Lease
    refused: dict[str, int]
    session: Session | None

    def why_unready(self) -> str: ...

    def stop(self, why: str) -> None: ...

    def release(self, number: int) -> bool: ...


class ServedScene:
    """Of one server."""

    def __init__(self, served: Served, clock: Callable[[], float] = time.monotonic) -> None:
        self._served, self._clock = served, clock

    def stop(self, why: str) -> None:
        self._served.stop(why)

    def release(self, number: int) -> bool:
        return self._served.release(number)

    def look(self) -> Sight:
        session, lease = self._served.session, self._served.lease
        why = lease.why_stopped
        stop = Stop(number=lease.num_stops, why=why, may_release=True) if why else None
        if session is None:
            figures = [Figure("state", self._served.why_unready() or "ready")]
            return Sight(
                title="no policy yet", figures=figures, stages={}, pictures={}, actions={},
                stop=stop,
            )  # fmt: skip
        policy, now = session.policy, self._clock()
        answers, seen = list(session.answered), session.seen
        images = [name for name, i in policy.inputs.items() if i.kind == "image" and name in seen]
        axes = named([""] * policy.chunk_shape[1])
        return Sight(
            title=policy.bundle.manifest.policy,
            figures=self._figures(session, answers, now),
            stages=of_networks(policy.graph, answers[-1].stages_s) if answers else {},
            pictures={name: np.asarray(seen[name]) for name in images},
            actions=_lines(axes, answers, now),
            stop=stop,
        )

    def _figures(self, session: Session, answers: Sequence[Answered], now: float) -> list[Figure]:
        lease, status, refused = self._served.lease, session.status(), self._served.refused
        texts = (n for n, i in session.policy.inputs.items() if i.kind == "text")
        told: Mapping[str, Any] = session.seen
        recent = [answer for answer in answers if now - answer.at <= RATE_S]
        why = self._served.why_unready()
        figures = [
            Figure("state", why or "ready", bool(why)),
            Figure("driver", self._driver(lease)),
            Figure("episode", f"{status['episodes']}, step {status['step'] or 0}"),
            *(Figure(name, str(told[name])) for name in texts if name in told),
            Figure("rate", f"{len(recent) / RATE_S:.1f} answers per second"),
        ]
        if answers:
            words = quantiles_ms([answer.infer_s for answer in answers])
            figures += [
                Figure(
                    "delay", f"{1e3 * answers[-1].infer_s:.1f} ms for the last answer ({words})"
                ),
                Figure("age", f"{now - answers[-1].at:.1f} s since the last observation came"),
            ]
        return [*figures, Figure("refused", counted(refused), any(refused.values()))]

    def _driver(self, lease: Lease) -> str:
        if lease.holder is None:
            return "nobody drives"
        return f"a client that acted {lease.clock() - lease.used_at:.1f} s ago"


def _lines(
    axes: Sequence[str], answers: Sequence[Answered], now: float
) -> dict[str, list[tuple[float, float]]]:
    """Of each chunk the actions until the next one came; of the last one all of them. Only the
    first where nobody knows how far apart they are."""
    lines: dict[str, list[tuple[float, float]]] = {axis: [] for axis in axes}
    recent = [answer for answer in answers if now - answer.at <= SHOWN_S]
    for answer, following in zip_longest(recent, recent[1:]):
        end = None if following is None else following.at
        rows = answer.actions_TA if answer.step_s else answer.actions_TA[:1]
        for step, row in enumerate(rows.tolist()):
            at = answer.at + step * (answer.step_s or 0.0)
            if end is not None and at >= end:
                break
            for axis, value in zip(axes, row, strict=True):
                lines[axis].append((at - now, value))
    return lines
