"""anchorvla serve: a bundle over the network, until it is told to stop."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import os
import signal
import stat
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING

from ... import anchor
from ...bundle import read_bundle
from ...cli.command import FAILED, INTERRUPTED, one_line
from ...policy import Policy
from ..heartbeat import Heartbeat, of_process
from .contract import Contract
from .session import Session

if TYPE_CHECKING:
    from .server import PolicyServer
    from .viewers import Show

MIN_KEY = 16
"""Characters; shorter ones are guessed."""


def add_arguments(verb: argparse.ArgumentParser) -> None:
    """What `serve` understands beside what all verbs that load a bundle do."""
    say = verb.add_argument
    say("--host", default="127.0.0.1", help="address to listen at (default 127.0.0.1)")
    say("--port", type=int, default=8000, help="default 8000; 0 takes one that is free")
    say(
        "--key-file",
        type=Path,
        help="clients show the key in this file; needed where other machines can connect",
    )
    say("--cert", type=Path, help="PEM certificate of this server: it speaks TLS then")
    say("--cert-key", type=Path, help="PEM file with that certificate's private key")
    say(
        "--heartbeat-s",
        type=float,
        default=5.0,
        help="a client that leaves a ping unanswered for so long is dead (default 5)",
    )
    say(
        "--answer-s",
        type=float,
        default=10.0,
        help="an observation is answered within so long, or refused (default 10)",
    )
    say(
        "--lease-s",
        type=float,
        default=10.0,
        help="a driver that is silent for longer may be replaced (default 10)",
    )
    say("--max-clients", type=int, default=16, help="connected at a time (default 16)")
    say("--seed", type=int, default=0, help="of the first episode's noise; the next has the next")
    say("--anchor", action="append", default=[], metavar="POLICY", help=anchor.WORDS)


def main_serve(
    options: argparse.Namespace,
    load: Callable[[], AbstractContextManager[Policy]],
    show: Show,
) -> int:
    """Serve until SIGTERM or SIGINT.

    Args:
        options: of the command line.
        load: loads the bundle; called in the thread that will compute.
        show: what the page for operators looks like.

    Raises:
        ValueError: an option is wrong, the address is taken, or websockets is not installed.
        BundleError: the bundle cannot be served.
    """
    try:
        from . import server
    except ModuleNotFoundError as error:
        raise ValueError(
            f"serve needs the package websockets, and {error.name} is not installed here: "
            "pip install 'anchorvla-runtime[serve]'"
        ) from None
    given = {
        f.name: getattr(options, f.name) for f in fields(server.ServeConfig) if f.name != "key"
    }
    key = None if options.key_file is None else read_key(options.key_file)
    config = server.ServeConfig(key=key, **given)
    anchor.parse_all(options.anchor)  # wrong words are refused before anything is loaded
    contract = Contract(read_bundle(options.bundle, engines=False).manifest.graph)

    heart = of_process()

    @contextlib.contextmanager
    def own() -> Iterator[Session]:
        with load() as policy, heart.watching(policy):
            yield Session(
                policy, options.seed, lambda: anchor.parse_all(options.anchor),
                heart=heart, complain=lambda error: complain(error, "the self-check failed"),
            )  # fmt: skip

    def complain(error: Exception, what: str = "a client was told of a failure") -> None:
        if options.debug:
            traceback.print_exception(error, file=sys.stderr)
        print(f"serve: {what}: {one_line(error)}", file=sys.stderr)

    served = server.PolicyServer(contract, own, config, complain=complain, show=show)
    return asyncio.run(_until_told(served, heart))


def read_key(file: Path) -> str:
    """The key in a file that nobody else may read.

    Raises:
        ValueError: others may read it, or it is too short or no plain text.
    """
    if stat.S_IMODE(file.stat().st_mode) & 0o077:
        raise ValueError(f"{file}: other users may read this key: chmod 600 {file}")
    key = file.read_bytes()
    words = key.decode("ascii", "replace").strip()
    if len(words) < MIN_KEY or not words.isascii() or not words.isprintable() or " " in words:
        raise ValueError(
            f"{file}: a key is one line of at least {MIN_KEY} characters without spaces: "
            f"make one with: openssl rand -hex 32 > {file}"
        )
    return words


async def _until_told(served: PolicyServer, heart: Heartbeat) -> int:
    stop, loop, start = asyncio.Event(), asyncio.get_running_loop(), time.monotonic()
    sessions: list[Session] = []

    def on_ready(session: Session) -> None:
        gc.collect()
        gc.freeze()  # what the policy holds stays, and is never looked through in a tick
        sessions.append(session)
        heart.ready()
        steps, actions = session.policy.chunk_shape
        print(
            f"serving {session.policy.bundle.manifest.policy}, chunks of {steps} x {actions}, on "
            f"{served.address} after {time.monotonic() - start:.1f} s; page {served.page}",
            flush=True,
        )

    def told(number: signal.Signals) -> None:
        heart.end(f"told to stop by {number.name}")
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, told, number)
    has_ended = await served.run(stop, on_ready)
    counts = ", ".join(f"{count} {kind}" for kind, count in served.refused.items() if count)
    stops = f"; stopped by operators: {n} times" if (n := served.lease.num_stops) else ""
    for session in sessions:
        print(
            f"stopped after {session.num_episodes} episodes, {session.num_ticks} ticks; "
            f"refused: {counts or 'nothing'}{stops}"
        )
    if has_ended:
        return 0
    words = "error: the policy did not stop, and was left as it was" if sessions else "interrupted"
    print(words, file=sys.stderr, flush=True)
    sys.stdout.flush()
    os._exit(FAILED if sessions else INTERRUPTED)  # its thread would keep this process
