"""What a board says of itself, for people."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from typing import Any

from export.release.config import StatusConfig
from export.release.flash import reached


def status(config: StatusConfig) -> None:
    """Print it.

    Raises:
        RemoteError: the board is not reached.
        ExportError: nothing was ever flashed there.
    """
    with reached(config.board, config.board.host) as board, board.visiting() as ask:
        found = ask("status")
    print(json.dumps(found, indent=1) if config.json else "\n".join(lines(found)))


def lines(found: Mapping[str, Any]) -> list[str]:
    """Of the agent's `status`."""
    current, service = found["current"], found["service"]
    if current is None:
        return [*_events(found), "nothing runs here; flash a release"]
    state = f"on trial, start {found['trial']}" if found["trial"] is not None else "confirmed"
    told = [f"current   {current}, {found['releases'][current]['policy']}; {state}"]
    if found["since"] is not None:
        told.append(f"since     {_when(found['since'])}, {_ago(found['time'] - found['since'])}")
    if found["previous"]:
        told.append(f"previous  {found['previous']}")
    words = f"{service.get('ActiveState', 'unknown')} ({service.get('SubState', '')})"
    told.append(f"service   {words}, restarted {service.get('NRestarts', '0')} times")
    now = found["status"]
    if now is not None:
        told.append(
            f"ticks     {now['ticks']} good ones; last {_ms(now.get('last_ms'))}, median "
            f"{_ms(now.get('p50_ms'))}, p99 {_ms(now.get('p99_ms'))}"
        )
        if now.get("stopped"):
            told.append(f"stopped   {_when(now['stopped']['at'])}: {now['stopped']['why']}")
    told += _events(found)
    if found["holder"]:
        told.append(f"flashing  {found['holder']}")
    return told


def _events(found: Mapping[str, Any]) -> list[str]:
    return [
        f"event     {_when(event['at'])} {event['what']} {event['release']}"
        + (f": {event['why']}" if event.get("why") else "")
        for event in found["events"][-3:]
    ]


def _when(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(seconds))


def _ago(seconds: float) -> str:
    for unit, length in (("days", 86400.0), ("hours", 3600.0), ("minutes", 60.0)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit} ago"
    return f"{seconds:.0f} seconds ago"


def _ms(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.1f} ms"
