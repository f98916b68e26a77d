"""agent VERB: the board's side of flash. Results are a line of JSON; errors one line of words."""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from export.release.agent import first_boot, install, lock, service, transfer, trial
from export.release.agent.facts import facts
from export.release.agent.place import ROOT, AgentError, Place, checked, led_to
from runtime.errors import BundleError, OutputError
from runtime.storage.files import remedy, write_file

FAILED = 1
KEY_NAME = re.compile(r"[0-9a-f]{8,64}\.pub")
MOST_KEY = 4096
Verb = Callable[[argparse.Namespace, Place], Any]


def main(arguments: list[str] | None = None) -> int:
    """Do a verb; its result is printed as the last line."""
    options = _parser().parse_args(arguments)
    os.umask(0o022)  # the service's user reads what is written here
    place = Place(options.root, options.system)
    verb: Verb = VERBS[options.verb]
    try:
        result = verb(options, place)
    except (AgentError, OutputError, BundleError) as error:
        return _failed(str(error))
    except OSError as error:
        return _failed(f"{error.filename or place.root}: {remedy(error)}")
    print(json.dumps(result), flush=True)
    return 0


def _failed(words: str) -> int:
    print(f"error: {' '.join(words.split())}", file=sys.stderr, flush=True)
    return FAILED


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _missing(options: argparse.Namespace, place: Place) -> Any:
    with lock.working(place, options.token):
        return transfer.missing(place, checked(json.load(sys.stdin), "standard input")["files"])


def _progress(options: argparse.Namespace, place: Place) -> Any:
    """How far a release has come; nothing is changed."""
    return install.progress(place, options.release, checked(json.load(sys.stdin), "standard input"))


def _adopt(options: argparse.Namespace, place: Place) -> Any:
    """Keep this program."""
    with lock.working(place, options.token):
        mine, kept = Path(sys.argv[0]).read_bytes(), place.root / "agent.pyz"
        if kept.is_file() and kept.read_bytes() == mine:
            return False
        write_file(kept, mine)
        kept.chmod(0o755)
        return True


def _receive(options: argparse.Namespace, place: Place) -> Any:
    with lock.working(place, options.token):
        return transfer.receive(place, sys.stdin.buffer)


def _unpack(options: argparse.Namespace, place: Place) -> Any:
    with lock.working(place, options.token):
        described = checked(json.load(sys.stdin), "standard input")
        return install.unpack(place, options.release, described)


def _trust(options: argparse.Namespace, place: Place) -> Any:
    """The first key that a board trusts; later ones are for whoever administers it."""
    with lock.working(place, options.token):
        if facts(place)["trusts"]:
            return False
        if not KEY_NAME.fullmatch(options.name):
            raise AgentError(f"{options.name!r} is no name of a key's file")
        write_file(place.trust / options.name, sys.stdin.buffer.read(MOST_KEY))
        return True


def _environment(options: argparse.Namespace, place: Place) -> Any:
    with lock.working(place, options.token):
        return install.make_environment(place, options.release, _say)


def _doctor(options: argparse.Namespace, place: Place) -> Any:
    with lock.working(place, options.token):
        return install.doctor(place, options.release, _say)


def _build(options: argparse.Namespace, place: Place) -> Any:
    with lock.working(place, options.token):
        return install.build_plans(place, options.release, _say)


def _prove(options: argparse.Namespace, place: Place) -> Any:
    with lock.working(place, options.token):
        return install.prove(place, options.release, _say)


def _switch(options: argparse.Namespace, place: Place) -> Any:
    with lock.working(place, options.token):
        service.install(place, service.units(place))
        switched = trial.begin(place, options.release, may_be_older=options.allow_downgrade)
        if switched or trial.trial_of(place) is not None:
            service.restart(place)
        return switched


def _rollback(options: argparse.Namespace, place: Place) -> Any:
    """To the release before, on trial like any other."""
    with lock.working(place, options.token):
        running = trial.give_back(place, "rolled back while it was on trial")
        target = led_to(place.previous) if running is None else running.previous
        if target is None:
            raise AgentError("there is no release before this one; flash another")
        if running is None:
            trial.begin(place, target, may_be_older=True)
        service.restart(place)
        return target


def _drop(options: argparse.Namespace, place: Place) -> Any:
    with lock.working(place, options.token):
        return install.drop(place, options.release)


def _clean(options: argparse.Namespace, place: Place) -> Any:
    with lock.working(place, options.token):
        return install.clean(place)


def _exec(_: argparse.Namespace, place: Place) -> Any:
    service.execute(place)


def _status(options: argparse.Namespace, place: Place) -> Any:
    """A flash that waits for a trial holds the board meanwhile."""
    if options.token:
        lock.stay(place, options.token)
    return service.report(place)


VERBS: dict[str, Verb] = {
    "facts": lambda _, place: facts(place),
    "status": _status,
    "progress": _progress,
    "adopt": _adopt,
    "lock": lambda options, place: lock.take(place, options.who),
    "unlock": lambda options, place: lock.leave(place, options.token),
    "missing": _missing,
    "receive": _receive,
    "unpack": _unpack,
    "trust": _trust,
    "environment": _environment,
    "doctor": _doctor,
    "build": _build,
    "prove": _prove,
    "switch": _switch,
    "rollback": _rollback,
    "drop": _drop,
    "clean": _clean,
    "start": lambda _, place: service.start(place),
    "exec": _exec,
    "settle": lambda _, place: service.settle(place, _say),
    "first-boot": lambda _, place: first_boot.go_on(place, _say),
}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="agent", description=__doc__)
    parser.add_argument("--root", type=Path, default=Path(ROOT))
    parser.add_argument("--system", type=Path, default=Path("/"))
    parser.add_argument("verb", choices=sorted(VERBS))
    parser.add_argument("release", nargs="?", default="")
    parser.add_argument("--token", default="")
    parser.add_argument("--who", default="somebody")
    parser.add_argument("--name", default="")
    parser.add_argument("--allow-downgrade", action="store_true")
    return parser


if __name__ == "__main__":
    sys.exit(main())
