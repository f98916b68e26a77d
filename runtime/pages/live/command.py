"""anchorvla run --live --page PORT: what somebody may watch while a loop drives."""

from __future__ import annotations

import argparse
import contextlib
import sys
import traceback
from collections.abc import Iterator

from ...cli.command import one_line
from ...control.sight import EpisodeScene
from ...graph import Graph
from .page import LivePage
from .terminal import Screen


def add_arguments(verb: argparse.ArgumentParser) -> None:
    """What `run` understands for it."""
    verb.add_argument(
        "--live",
        action="store_true",
        help="show on standard error what it does: rate, delay, age, misses, interventions, and "
        "what is recomputed",
    )
    verb.add_argument(
        "--page",
        type=int,
        metavar="PORT",
        help="the same on a page for browsers of this machine, with cameras, actions and a stop "
        "button; 0 takes a port that is free",
    )


@contextlib.contextmanager
def watched(options: argparse.Namespace, graph: Graph) -> Iterator[EpisodeScene]:
    """What the episodes of the block are shown on; the page is there while it lasts.

    Raises:
        ValueError: the port cannot be listened at, or websockets is not installed.
    """
    scene = EpisodeScene(graph)
    if options.page is None:
        yield scene
        return
    if not 0 <= options.page < 65536:
        raise ValueError(f"--page must be a port in [0, 65535], got {options.page}")
    try:
        from ...control.server.lookout import on_page
    except ModuleNotFoundError as error:
        raise ValueError(
            f"--page needs the package websockets, and {error.name} is not installed here: "
            "pip install 'anchorvla-runtime[serve]'"
        ) from None

    def complain(error: Exception) -> None:
        if options.debug:
            traceback.print_exception(error, file=sys.stderr)
        print(f"page: cannot be drawn: {one_line(error)}", file=sys.stderr)

    with on_page(scene, LivePage(), options.page, complain=complain) as address:
        print(f"page: {address}", flush=True)
        yield scene


@contextlib.contextmanager
def on_screen(options: argparse.Namespace, scene: EpisodeScene) -> Iterator[None]:
    """The terminal shows the episode of the block, if it shall."""
    if not options.live:
        yield
        return
    screen = Screen(scene, sys.stderr)
    screen.start()
    try:
        yield
    finally:
        screen.close()
