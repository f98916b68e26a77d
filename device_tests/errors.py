"""Errors that a user can mend, and their exit codes: those of `anchorvla`, and one for the host."""

from __future__ import annotations

from runtime.__main__ import EXIT_CODES

REMOTE_CODE, USAGE_CODE, INTERRUPTED_CODE = 7, 2, 130
EXIT_OFFSET = 64
"""Added to them on their way through pytest, which has a meaning of its own for 0 to 5."""


class RemoteError(Exception):
    """The other machine cannot be reached, is not the one we know, or lacks what is needed."""


USER_ERRORS: tuple[type[Exception], ...] = (
    *EXIT_CODES,
    RemoteError,
    ValueError,
    OSError,
    MemoryError,
)
"""What becomes one line; anything else is our mistake and shows its traceback."""


def exit_code(error: Exception) -> int:
    """For one of `USER_ERRORS`."""
    codes = {**EXIT_CODES, RemoteError: REMOTE_CODE}
    return next((code for kind, code in codes.items() if isinstance(error, kind)), USAGE_CODE)
