"""How a command of this project ends: one line for what a user can mend, and an exit code.

    0  done                       5  engine
    1  a check or a gate failed   6  robot, simulator or recording
    2  wrong usage                7  the other machine (device_tests)
    3  bundle                     8  output that cannot be written
    4  observation              130  interrupted

Tracebacks are for `--debug`, and for mistakes of ours, which no class below names.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence

from ..errors import (
    BundleError,
    EngineError,
    ObservationError,
    OutputError,
    RecordingError,
    RobotError,
)
from ..storage.files import FULL, remedy

FAILED, USAGE, OUTPUT, INTERRUPTED = 1, 2, 8, 130
EXIT_CODES: dict[type[Exception], int] = {
    BundleError: 3,
    ObservationError: 4,
    EngineError: 5,
    RobotError: 6,
    RecordingError: 6,
    OutputError: OUTPUT,
}


def finish(
    run: Callable[[], object],
    *,
    debug: bool = False,
    codes: Mapping[type[Exception], int] = EXIT_CODES,
    interrupted: str = "interrupted",
) -> int:
    """Do `run`, and say in one line on standard error what kept it from its end.

    Args:
        run: its result is the exit code, where it is an int.
        debug: let errors out as they are.
        codes: of errors, beyond those of values and of the system.
        interrupted: what to say to somebody who interrupts it.

    Returns:
        The exit code.
    """
    mendable: tuple[type[Exception], ...] = (*codes, ValueError, OSError, MemoryError)
    try:
        try:
            result = run()
        except SystemExit:  # of a parser, which has written its help
            sys.stdout.flush()
            raise
        sys.stdout.flush()  # here, for nobody could catch what it raises at the process's end
        return result if isinstance(result, int) else 0
    except BrokenPipeError as error:  # the reader of our output has seen enough
        _gone(error)
        return 0
    except KeyboardInterrupt:
        print(interrupted, file=sys.stderr)
        return INTERRUPTED
    except mendable as error:
        if debug:
            raise
        words, code = one_line(error), exit_code(error, codes)
        if isinstance(error, OSError) and _gone(error):
            words, code = f"standard output: cannot be written: {remedy(error)}", OUTPUT
        print(f"error: {words}", file=sys.stderr)
        return code


def exit_code(error: Exception, codes: Mapping[type[Exception], int] = EXIT_CODES) -> int:
    """Of an error that a user can mend."""
    for kind, code in codes.items():
        if isinstance(error, kind):
            return code
    return OUTPUT if isinstance(error, OSError) and error.errno in FULL else USAGE


def one_line(error: Exception) -> str:
    """What a user needs to know of an error."""
    words = str(error)
    if isinstance(error, OSError):
        at = f"{error.filename}: " if error.filename is not None else ""
        said = f"{(error.strerror or words).lower()}; check the path and its permissions"
        if error.errno in FULL:
            said = "the disk is full; free some space and try again"
        words = at + said
    elif isinstance(error, MemoryError):
        words = f"out of memory{f' ({error})' if words else ''}; close other programs"
    return " ".join(words.split())


def wants_debug(arguments: Sequence[str] | None) -> bool:
    """Is `--debug` among the arguments, or on the command line? Known before they are parsed."""
    return "--debug" in (sys.argv[1:] if arguments is None else arguments)


@contextlib.contextmanager
def nothing_begun() -> Iterator[None]:
    """While modules load there is nothing to undo, and some turn an interrupt into their own error:
    until the block ends, Ctrl-C ends the process at once."""
    before = signal.getsignal(signal.SIGINT)
    is_ours = before is signal.default_int_handler
    if is_ours and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)
    else:
        yield


def _gone(error: OSError) -> bool:
    """Did `error` come of standard output? Then let it go nowhere from now on.

    An error of a file has its name. What could not be written is dropped, so a line more tells.
    """
    if error.filename is not None:
        return False
    try:
        print(flush=True)
    except OSError:
        with contextlib.suppress(OSError, ValueError), open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), sys.stdout.fileno())
        return True
    return False
