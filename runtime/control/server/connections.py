"""Connections of strangers: how many there are, who may open one, and how much each may hold up.

`websockets` does the protocol. It answers every ping at once, and would keep answers without end
for a client that never reads them: that client is cut off here.
"""

from __future__ import annotations

import asyncio
import hmac
import itertools
from collections.abc import Callable
from http import HTTPStatus
from typing import Any

from websockets.asyncio.server import ServerConnection
from websockets.http11 import Request, Response
from websockets.protocol import State

_NUMBERS = itertools.count()
_SPARE = 4
"""So many times the clients that may be served may be connected, to hear that they may not."""


class Connection(ServerConnection):
    """One client.

    Args:
        doors: of the server.
    """

    def __init__(self, *arguments: Any, doors: Doors, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.number = next(_NUMBERS)
        """Of this client and of no other."""
        self._doors = doors

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._doors.inside.add(self)
        if self._doors.is_closed or len(self._doors.inside) > _SPARE * self._doors.max_clients:
            self.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self._doors.inside.discard(self)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.transport.get_write_buffer_size() > self._doors.max_unread:
            self.abort()

    def abort(self) -> None:
        """End it without a word: nobody listens."""
        self.transport.abort()


class Doors:
    """Who is inside, and who gets in.

    Args:
        max_clients: served at a time.
        max_unread: bytes that a client may leave unread.
        key: that a client has to show, if one is needed.
        why_unready: why no observation would be answered now; empty if it would.
    """

    def __init__(
        self, max_clients: int, max_unread: int, key: str | None, why_unready: Callable[[], str]
    ) -> None:
        self.max_clients, self.max_unread = max_clients, max_unread
        self.inside: set[Connection] = set()
        self.is_closed = False
        self._key = None if key is None else f"Api-Key {key}".encode()
        self._why_unready = why_unready

    def judge(self, connection: ServerConnection, request: Request) -> Response | None:
        """Answer a question about health, or turn a client away; None lets it in."""
        path = request.path.partition("?")[0]
        if path == "/healthz":
            return connection.respond(HTTPStatus.OK, "OK\n")
        if path == "/readyz":
            why = self._why_unready()
            status = HTTPStatus.SERVICE_UNAVAILABLE if why else HTTPStatus.OK
            return connection.respond(status, f"{why or 'ready'}\n")
        if not self._has_key(request):
            return connection.respond(HTTPStatus.UNAUTHORIZED, "a key is needed, and not this\n")
        if len(self.inside) > self.max_clients:
            words = f"{self.max_clients} clients are connected, and no more are served\n"
            return connection.respond(HTTPStatus.SERVICE_UNAVAILABLE, words)
        return None

    def close(self) -> None:
        """Nobody gets in any more; those who connected and said nothing are not told."""
        self.is_closed = True
        for connection in [*self.inside]:
            if connection.protocol.state is State.CONNECTING:
                connection.abort()

    def _has_key(self, request: Request) -> bool:
        if self._key is None:
            return True
        shown = request.headers.get_all("Authorization")
        given = shown[0] if len(shown) == 1 else ""
        return hmac.compare_digest(given.encode("utf-8", "surrogateescape"), self._key)
