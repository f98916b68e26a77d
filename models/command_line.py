"""The command line of a package with verbs: `python -m PACKAGE VERB ...`.

A verb is a configuration, which says what may be asked for, and a function that does it. Both are
named by strings, "module:name". Configurations load at once and must be light; the function's
module, torch and all, loads when its verb was given right. So help and mistakes take no time.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from runtime.cli.command import EXIT_CODES, finish, nothing_begun, wants_debug

Verbs = Mapping[str, tuple[str | type, str | Callable[[Any], object]]]
"""Configuration and function by verb."""


def run_verbs(
    verbs: Verbs,
    package: str,
    description: str,
    arguments: Sequence[str] | None = None,
    codes: Mapping[type[Exception], int] | None = None,
) -> int:
    """Do what `arguments`, or the command line, ask for.

    Args:
        codes: of errors beyond those of `runtime.cli.command`.

    Returns:
        The exit code.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)

    def run() -> object:
        with nothing_begun():
            import tyro

            configs = {verb: load(config) for verb, (config, _) in verbs.items()}
            chosen = tyro.extras.subcommand_cli_from_dict(
                configs,
                prog=f"python -m {package}",
                description=f"{description}\n\nEvery verb takes --debug: show the traceback.",
                args=[word for word in given if word != "--debug"],
            )
            verb = next(verb for verb, config in configs.items() if type(chosen) is config)
            do = load(verbs[verb][1])
        return do(chosen)

    return finish(run, debug=wants_debug(given), codes={**EXIT_CODES, **(codes or {})})


def load(name: Any) -> Any:
    """What "module:name" names; anything but a string is taken as it is."""
    if not isinstance(name, str):
        return name
    module, _, attribute = name.partition(":")
    return getattr(importlib.import_module(module), attribute)
