"""Who looks on in a browser: a page, and behind it what the page shows, drawn anew a few times a
second.

A page is sent the newest drawing, and nothing more until it says that it has shown that one. So a
slow one misses drawings, which are counted, and is never shown what is long past. It keeps nobody
waiting: a drawing is made in a thread, once for all pages, and only while somebody looks.

The page itself is the same for everybody and says nothing. What it shows needs the key, which it
sends as its first message: a key in an address would end in logs and histories.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import json
from collections.abc import Callable, Mapping
from http import HTTPStatus
from typing import Any, Protocol

from websockets.asyncio.server import ServerConnection
from websockets.datastructures import Headers
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response

from ..sight import Scene, Sight
from .connections import Connection

PERIOD_S = 0.25
"""Between two drawings."""
GOING_AWAY, WRONG_KEY = 1001, 4401
"""Close codes; the second is one that is free for any use (RFC 6455, section 7.4)."""
MAX_WORDS = 256
"""Characters of what a page says."""


class Show(Protocol):
    """What a page looks like."""

    html: bytes
    headers: Mapping[str, str]
    """That a browser gets with it."""

    def draw(self, sight: Sight) -> str:
        """As JSON that the page understands. Takes its time; called in a thread."""


class Viewers:
    """Of one scene.

    Args:
        scene: looked at in a thread, stopped in the one that listens.
        show: of the scene.
        key: that a page has to send.
        patience_s: for that, and for a page to take what it is sent.
        complain: told of our own failures.
    """

    def __init__(
        self,
        scene: Scene,
        show: Show,
        key: str,
        patience_s: float,
        complain: Callable[[Exception], None],
    ) -> None:
        self.key = key
        self.pages = set[Connection]()
        """That are shown something."""
        self.num_dropped = 0
        """Drawings that a page was too slow for."""
        self._scene, self._show = scene, show
        self._patience_s, self._complain = patience_s, complain
        self._number, self._drawing = 0, ""
        self._drawn, self._hurry = asyncio.Event(), asyncio.Event()
        self._draws: asyncio.Task[None] | None = None

    def respond(self, connection: ServerConnection, request: Request) -> Response | None:
        """The page; None lets a page in that wants to hear more."""
        if "Upgrade" in request.headers:
            origins, hosts = (request.headers.get_all(name) for name in ("Origin", "Host"))
            if origins and [origin.partition("://")[2] for origin in origins] != hosts:
                return connection.respond(HTTPStatus.FORBIDDEN, "a page of somebody else\n")
            return None
        headers = Headers(
            {
                "Content-Type": "text/html; charset=utf-8",
                "Content-Length": str(len(self._show.html)),
                "Connection": "close",
                **self._show.headers,
            }
        )
        return Response(HTTPStatus.OK, "OK", headers, self._show.html)

    async def serve(self, connection: Connection) -> None:
        """One page, until it leaves."""
        try:
            if not await self._shows_key(connection):
                await connection.close(WRONG_KEY, "that is not the key")
                return
            self.pages.add(connection)
            shown = asyncio.Event()
            shown.set()
            pushing = asyncio.ensure_future(self._push(connection, shown))
            try:
                async for data in connection:
                    self._hear(_words(data), connection, shown)
            finally:
                self.pages.discard(connection)
                pushing.cancel()
                with contextlib.suppress(asyncio.CancelledError, ConnectionClosed):
                    await pushing
        except ConnectionClosed:
            pass

    def hurry(self) -> None:
        """Something happened that has to be seen: draw now."""
        self._hurry.set()

    async def close(self, why: str) -> None:
        """Draw no more, and tell the pages why."""
        leaving = [page.close(GOING_AWAY, why) for page in self.pages]
        await asyncio.gather(*leaving, return_exceptions=True)
        if self._draws is not None:
            self._draws.cancel()
            await asyncio.wait({self._draws})

    async def _shows_key(self, connection: Connection) -> bool:
        try:
            data = await asyncio.wait_for(connection.recv(), self._patience_s)
        except asyncio.TimeoutError:
            return False
        given = _words(data).get("key")
        given = given if isinstance(given, str) else ""
        return hmac.compare_digest(given.encode("utf-8", "replace"), self.key.encode())

    def _hear(self, words: Mapping[str, Any], connection: Connection, shown: asyncio.Event) -> None:
        if "shown" in words:
            shown.set()
        if words.get("stop") is True:
            address = connection.remote_address
            self._scene.stop(f"an operator at {address[0]} pressed stop")
            self.hurry()
        if type(number := words.get("release")) is int:
            self._scene.release(number)
            self.hurry()

    async def _push(self, connection: Connection, shown: asyncio.Event) -> None:
        """Send what is new, whenever the page has shown what it was sent."""
        seen, dropped = self._number, 0
        if self._draws is None or self._draws.done():
            self._draws = asyncio.ensure_future(self._draw())
        while True:
            await shown.wait()
            while seen == self._number:
                await self._drawn.wait()
            missed = self._number - seen - 1
            dropped, self.num_dropped = dropped + missed, self.num_dropped + missed
            seen, drawing = self._number, self._drawing
            shown.clear()
            await connection.deliver(
                f'{{"number":{seen},"dropped":{dropped},"drawing":{drawing}}}', self._patience_s
            )

    async def _draw(self) -> None:
        """While somebody looks."""
        while self.pages:
            self._hurry.clear()
            try:
                self._drawing = await asyncio.to_thread(self._look)
            except Exception as error:  # the page tells that it hears nothing
                self._complain(error)
            else:
                self._number += 1
                self._drawn.set()
                self._drawn = asyncio.Event()
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._hurry.wait(), PERIOD_S)

    def _look(self) -> str:
        return self._show.draw(self._scene.look())


def _words(data: str | bytes) -> dict[str, Any]:
    """What a page said; nothing if that is nothing it says."""
    if not isinstance(data, str) or len(data) > MAX_WORDS:
        return {}
    try:
        said = json.loads(data)
    except ValueError:
        return {}
    return said if isinstance(said, dict) else {}
