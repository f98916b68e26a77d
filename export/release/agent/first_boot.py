"""What a board does by itself with a release that came with its system: all that a flash would do.

`first-boot.json` names the release, and is there until it is confirmed. Each boot goes on where the
one before was cut off, for every step leaves its mark. A step that failed is written down, and
tried again at the next boot.
"""

from __future__ import annotations

from collections.abc import Callable

from export.release.agent import install, lock, service, trial
from export.release.agent.place import (
    PROVEN,
    AgentError,
    Place,
    events,
    led_to,
    read_json,
    tell,
)
from runtime.errors import BundleError, OutputError
from runtime.storage.files import sync

CANNOT = 2
"""Exit code of a doctor who found what keeps the board from running anything."""
Say = Callable[[str], None]
Do = Callable[[Place, str, Say], object]


def go_on(place: Place, say: Say) -> str | None:
    """Bring the release that came with the system from where it is to confirmed.

    Returns:
        Its name; None where there is none, or another was flashed meanwhile.

    Raises:
        AgentError: a step failed, or somebody flashes this board just now.
    """
    found = read_json(place.first_boot)
    if found is None:
        return None
    release = found.get("release") if isinstance(found, dict) else None
    if not isinstance(release, str):
        raise AgentError(f"{place.first_boot}: names no release; remove it, and flash one")
    place.folder(release)
    token = lock.take(place, "its first boot")
    try:
        with lock.working(place, token):
            other = led_to(place.current)
            if other not in (None, release):
                tell(place, "passed over", release, why=f"{other} was flashed before its turn")
                _finish(place)
                return None
            place.described(release)  # it is whole
            for name, do in STEPS:
                say(name)
                _try(place, release, name, do, say)
            _finish(place)
            return release
    finally:
        lock.leave(place, token)


def _try(place: Place, release: str, name: str, do: Do, say: Say) -> None:
    try:
        do(place, release, say)
    except (AgentError, BundleError, OutputError, OSError) as error:
        tell(place, "failed", release, why=f"{name}: {error}; the next boot tries again")
        raise


def _doctor(place: Place, release: str, say: Say) -> None:
    if (place.folder(release) / PROVEN).is_file():
        return
    if install.doctor(place, release, say) == CANNOT:
        raise AgentError(
            f"what keeps this board from running it: journalctl -u {service.FIRST_BOOT}"
        )


def _switch(place: Place, release: str, say: Say) -> None:
    service.install(place, service.units(place))
    switched = trial.begin(place, release)
    running = trial.trial_of(place)
    if switched or (running is not None and not running.starts):
        service.restart(place)


def _settle(place: Place, release: str, say: Say) -> None:
    service.settle(place, say)
    if led_to(place.current) != release:
        returns = [e for e in events(place) if e["what"] == "returned" and e["release"] == release]
        raise AgentError(
            f"not confirmed, {returns[-1]['why'] if returns else 'and why is unknown'}"
        )


def _finish(place: Place) -> None:
    place.first_boot.unlink()
    sync(place.root)
    service.forget(place, service.FIRST_BOOT)


STEPS: tuple[tuple[str, Do], ...] = (
    ("environment", install.make_environment),
    ("doctor", _doctor),
    ("build", install.build_plans),
    ("prove", install.prove),
    ("switch", _switch),
    ("settle", _settle),
)
