"""Which release is current, on trial, and the one before: changed in steps that survive a cut.

A release goes on trial (`trial.json` is written, then `current` is switched) and leaves it in one
of two ways: it is confirmed, or the one before comes back. Between any two writes the board has a
release that it can start, and `recover` knows from what is there how far the last change came. A
return to an earlier release is a trial too.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

from export.release.agent.place import (
    BUNDLE,
    PROVEN,
    AgentError,
    Place,
    led_to,
    link,
    read_json,
    tell,
    write_json,
)
from runtime.errors import BundleError
from runtime.storage.files import sync
from runtime.storage.signature import read_signature


@dataclass(frozen=True, slots=True)
class Trial:
    """Of the current release."""

    release: str
    previous: str | None
    """That comes back if the trial fails."""
    starts: int = 0
    """Of its service."""


def trial_of(place: Place) -> Trial | None:
    """What goes on now; None where the current release is confirmed."""
    found = read_json(place.trial)
    if found is None:
        return None
    trial = Trial(found["release"], found["previous"], found["starts"])
    return trial if led_to(place.current) == trial.release else None


def recover(place: Place) -> None:
    """A trial whose switch, confirmation or return was cut off: put in order."""
    found = read_json(place.trial)
    if found is not None and trial_of(place) is None:
        now = led_to(place.current)
        tell(place, "cut off", found["release"], current=now)
        _end(place)


def begin(place: Place, release: str, *, may_be_older: bool = False) -> bool:
    """Switch to a proven release, on trial.

    Args:
        may_be_older: than the current one.

    Returns:
        Whether there was anything to do.

    Raises:
        AgentError: it was not proven here, or it is older.
    """
    with place.changing():
        recover(place)
        now = led_to(place.current)
        if now == release:
            return False
        if not (place.folder(release) / PROVEN).is_file():
            raise AgentError(f"{release}: not proven on this board; flash it")
        if now is not None and not may_be_older:
            refuse_older(place, release, now)
        running = trial_of(place)
        if running is not None:  # an unconfirmed one is no way back
            _return(place, running, f"{release} was flashed before it was confirmed")
            now = running.previous
        write_json(place.trial, asdict(Trial(release, now)))
        link(place.current, release)
        tell(place, "switched", release, previous=now)
        return True


def refuse_older(place: Place, release: str, than: str) -> None:
    """
    Raises:
        AgentError: `release` has a smaller number than the other, and is another.
    """
    number, other = number_of(place, release), number_of(place, than)
    if number < other:
        raise AgentError(
            f"{release}: release {number} is older than {other}, which runs here; to go back to it "
            "on purpose: --allow-downgrade"
        )


def number_of(place: Place, release: str) -> int:
    """As its signature says, which the runtime checks before it runs anything; 0 without one."""
    try:
        found = read_signature(place.folder(release) / BUNDLE)
    except BundleError as error:
        raise AgentError(str(error)) from None
    return 0 if found is None else found.number


def confirm(place: Place) -> str | None:
    """The trial is over, and the release stays.

    Returns:
        Its name; None where none was on trial.
    """
    with place.changing():
        recover(place)
        trial = trial_of(place)
        if trial is None:
            return None
        if trial.previous is not None:
            link(place.previous, trial.previous)
        _end(place)
        tell(place, "confirmed", trial.release)
        return trial.release


def give_back(place: Place, why: str) -> Trial | None:
    """The trial failed: the release before is current again, or none where there was none.

    Returns:
        The trial; None where none was going on.
    """
    with place.changing():
        recover(place)
        trial = trial_of(place)
        if trial is not None:
            _return(place, trial, why)
        return trial


def count_start(place: Place, most: int) -> str | None:
    """The service starts; a release on trial that has started too often goes back.

    Args:
        most: starts of a release on trial.

    Returns:
        The release that runs now; None where there is none.
    """
    with place.changing():
        recover(place)
        trial = trial_of(place)
        if trial is not None and trial.starts < most:
            again = Trial(trial.release, trial.previous, trial.starts + 1)
            write_json(place.trial, asdict(again))
        elif trial is not None:
            starts = f"its service was started {trial.starts} times and was never healthy"
            _return(place, trial, starts)
        return led_to(place.current)


def _return(place: Place, trial: Trial, why: str) -> None:
    link(place.current, trial.previous)
    _end(place)
    tell(place, "returned", trial.release, to=trial.previous, why=why)


def _end(place: Place) -> None:
    place.trial.unlink()
    sync(place.root)
