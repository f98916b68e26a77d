"""python -m device_tests.serving HOST:PORT

What holds of a policy server, ours or any other that speaks openpi's protocol? Connects as a
client would, also as a clumsy or a hostile one, and prints a table. Nothing moves, but the policy
computes: run it while no robot is driven.

Observations are made up from the inputs that the server declares. A server that declares none, as
openpi's own, needs one: --observation FILE.npz, an array per key and texts as arrays of one text.

example: python -m device_tests.serving 127.0.0.1:8000

Exit codes: 0 all of it holds, 1 something does not, 2 wrong usage, 7 no server answers there, 130
interrupted.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from device_tests.errors import EXIT_CODES
from runtime.cli.command import FAILED, finish, wants_debug
from runtime.control.server.command import read_key


def main(arguments: list[str] | None = None) -> int:
    """Print the table; errors that a user can mend become one line and an exit code."""

    def run() -> int:
        return _main(_parser().parse_args(arguments))

    return finish(run, debug=wants_debug(arguments), codes=EXIT_CODES)


def _main(options: argparse.Namespace) -> int:
    try:
        from device_tests.serving.checks import judge
        from device_tests.serving.target import Target, read_observation
    except ModuleNotFoundError as error:
        raise ValueError(
            f"this needs the package websockets, and {error.name} is not installed here: "
            "pip install websockets"
        ) from None
    if not 0 < options.answer_s <= 3600:
        raise ValueError(f"--answer-s must be in (0, 3600], got {options.answer_s}")
    given = None if options.observation is None else read_observation(options.observation)
    key = None if options.key_file is None else read_key(options.key_file)
    target = Target.meet(options.address, key=key, answer_s=options.answer_s, observation=given)
    broken = 0
    for name, verdict in judge(target):
        mark = {True: "ok  ", False: "FAIL", None: "?   "}[verdict.holds]
        broken += verdict.holds is False
        print(f"{mark} {name:<52} {verdict.seen}", flush=True)
    return FAILED if broken else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m device_tests.serving",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("address", metavar="HOST:PORT")
    add("--key-file", type=Path, help="the key that the server wants, in a file")
    add("--observation", type=Path, help="what to send, where the server does not say: FILE.npz")
    add("--answer-s", type=float, default=10.0, help="wait so long for an answer (default 10)")
    add("--debug", action="store_true", help="show the traceback of an error")
    return parser


if __name__ == "__main__":
    sys.exit(main())
