"""python -m device_tests BUNDLE [--host user@orin]

Does a bundle keep its promises on this machine, or on a board reached over ssh? Measured once,
judged by the budgets of the board (device_tests/budgets.py), written as JSON and as a page. Where
TensorRT runs it, plans that are missing are built first; over ssh that is every time, unless
--there names a bundle that stays on the board.

example: python -m device_tests bundle --seconds 60

Exit codes: 0 every promise that could be measured is kept, 1 one is broken, 2 wrong usage,
3 bundle, 4 observation, 5 engine, 7 the other machine, 8 output that cannot be written, 130
interrupted.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from device_tests.budgets import BUDGETS, choose_board
from device_tests.comparison import read_reference
from device_tests.config import OPTIONS, MeasureConfig, flag, read_config
from device_tests.errors import EXIT_CODES, EXIT_OFFSET
from device_tests.measured import default_backend
from device_tests.page.report import WRITTEN
from device_tests.remote import Remote, run_remotely
from runtime.__main__ import main as runtime_command
from runtime.board.machine import read_machine
from runtime.bundle import read_bundle
from runtime.cli.command import INTERRUPTED, USAGE, finish, wants_debug
from runtime.storage.files import check_output

RESULTS = Path("build/device")
GPU_BACKENDS = ("tensorrt", "tensorrt_rtx")
"""They need plans, which are made where they run."""
CODES: dict[int, int] = {
    pytest.ExitCode.INTERRUPTED: INTERRUPTED,
    pytest.ExitCode.INTERNAL_ERROR: 1,
    pytest.ExitCode.USAGE_ERROR: USAGE,
    pytest.ExitCode.NO_TESTS_COLLECTED: USAGE,
}
"""pytest's into ours."""
THERE = tuple(name for name in OPTIONS if name not in ("bundle", "baseline"))
"""Options that mean the same on another machine."""


def main(arguments: list[str] | None = None) -> int:
    """Run the tests; errors that a user can mend become one line and an exit code."""

    def run() -> int:
        return _main(_parser().parse_args(arguments))

    return finish(run, debug=wants_debug(arguments), codes=EXIT_CODES)


def _main(options: argparse.Namespace) -> int:
    config = read_config(vars(options))
    if options.there and options.host is None:
        raise ValueError("--there says that BUNDLE lies on another machine: give --host too")
    if options.there and not config.bundle.is_absolute():
        raise ValueError(f"--there needs the whole path on that host, got {config.bundle}")
    for name, kind in WRITTEN.items():
        check_output(options.results / name, kind)
    if not options.there:
        read_bundle(config.bundle)
    if config.baseline is not None:
        read_reference(config.baseline)
    if options.host is not None:
        return _run_there(options, config)
    machine = read_machine()
    choose_board(machine, config.board)
    backend = config.backend or default_backend(machine)
    if backend in GPU_BACKENDS:  # keeps the plans that are there
        code = runtime_command(["build", str(config.bundle), "--backend", backend])
        if code:
            return code
    return _run_here(options)


def _run_here(options: argparse.Namespace) -> int:
    """pytest on this folder alone, whatever the checkout around it configures."""
    here = Path(__file__).parent
    arguments = [str(here / "test_device.py"), "--import-mode=importlib", "-c", os.devnull]
    arguments += [f"--rootdir={here.parent}", "-p", "no:cacheprovider", "-q", "--tb=short"]
    code = int(pytest.main([*arguments, *_flags(options, (*OPTIONS, "results"))]))
    return code - EXIT_OFFSET if code >= EXIT_OFFSET else CODES.get(code, code)


def _run_there(options: argparse.Namespace, config: MeasureConfig) -> int:
    return run_remotely(
        Remote.parse(options.host, python=options.python, options=options.ssh_option),
        config.bundle,
        options.results,
        _flags(options, THERE),
        baseline=config.baseline,
        there=options.there,
    )


def _flags(options: argparse.Namespace, names: Sequence[str]) -> list[str]:
    values = {name: getattr(options, name) for name in names}
    return [f"{flag(name)}={value}" for name, value in values.items() if value is not None]


def _parser() -> argparse.ArgumentParser:
    """Options that are left out are None: the defaults are `MeasureConfig`'s."""
    parser = argparse.ArgumentParser(
        prog="python -m device_tests",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add, d = parser.add_argument, MeasureConfig(bundle=Path())
    add("bundle", type=Path, metavar="BUNDLE")
    add("--board", help=f"row of the budgets, of {', '.join(BUDGETS)} (default: this machine's)")
    add("--backend", help="tensorrt (default on a Jetson), onnxruntime (elsewhere), tensorrt_rtx")
    add("--embodiment", help="key of the statistics, where there are several")
    add("--seconds", type=float, help=f"of each of the five parts (default {d.seconds:g})")
    add("--soak-s", type=float, help="length of the thermal soak (default: none)")
    add("--num-idle", type=int, help=f"ticks after a pause (default {d.num_idle})")
    add("--idle-s", type=float, help=f"length of such a pause (default {d.idle_s:g})")
    add(
        "--memory-share",
        type=float,
        help=f"of the free memory that one part takes away (default {d.memory_share:g})",
    )
    add("--results", type=Path, default=RESULTS, help=f"folder to write to (default {RESULTS})")
    add("--baseline", type=Path, help="device.json of the last accepted result")
    add("--commit", help="of the checkout, where these files lie outside of one")
    add("--host", help="user@host or user@host:port, reached with ssh; its key must be known")
    add("--there", action="store_true", help="BUNDLE is a path on that host: copy only the tests")
    add("--python", default="python3", help="Python on that host (default python3)")
    add(
        "--ssh-option",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="for ssh -o, such as ProxyJump=gate; may be given again",
    )
    add("--debug", action="store_true", help="show the traceback of an error")
    return parser


if __name__ == "__main__":
    sys.exit(main())
