"""Errors that a user can mend, with the exit codes of every command, and one for the host."""

from __future__ import annotations

from runtime.cli import command

REMOTE_CODE = 7
EXIT_OFFSET = 64
"""Added to them on their way through pytest, which has a meaning of its own for 0 to 5."""


class RemoteError(Exception):
    """The other machine cannot be reached, is not the one we know, or lacks what is needed."""


EXIT_CODES: dict[type[Exception], int] = {**command.EXIT_CODES, RemoteError: REMOTE_CODE}
USER_ERRORS: tuple[type[Exception], ...] = (*EXIT_CODES, ValueError, OSError, MemoryError)
"""What becomes one line; anything else is our mistake and shows its traceback."""


def exit_code(error: Exception) -> int:
    """For one of `USER_ERRORS`."""
    return command.exit_code(error, EXIT_CODES)
