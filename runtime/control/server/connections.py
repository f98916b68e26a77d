"""Connections of strangers: how many there are, who may open one, and how much each may hold up.

`websockets` does the protocol. It answers every ping at once, and would keep answers without end
for a client that never reads them: that client is cut off here.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import hmac
import itertools
import logging
import ssl
import sys
from collections.abc import Callable, Iterator
from http import HTTPStatus
from pathlib import Path
from typing import Any

from websockets.asyncio.server import ServerConnection
from websockets.http11 import Request, Response
from websockets.protocol import State

_NUMBERS = itertools.count()
VIEW = "/view"
"""Where a browser finds the page, and the page what it shows."""
MAX_VIEWERS = 8
"""Pages at a time."""
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
        self.is_viewer = False
        """A page of ours in a browser."""
        self._doors = doors

    async def deliver(self, data: str | bytes, timeout_s: float) -> None:
        """Send it, and end the connection if that takes too long.

        Raises:
            ConnectionClosed: the client is gone, or reads too slowly.
        """
        sending = asyncio.ensure_future(self.send(data))
        done, _ = await asyncio.wait({sending}, timeout=timeout_s)
        if not done:
            self.abort()
        await sending

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._doors.inside.add(self)
        if self._doors.is_closed or len(self._doors.inside) > self._doors.max_connected:
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
        page: answers a browser; None lets it in, to be shown more.
    """

    def __init__(
        self,
        max_clients: int,
        max_unread: int,
        key: str | None,
        why_unready: Callable[[], str],
        page: Callable[[ServerConnection, Request], Response | None] | None = None,
    ) -> None:
        self.max_clients, self.max_unread = max_clients, max_unread
        self.inside: set[Connection] = set()
        self.is_closed = False
        self._key = None if key is None else f"Api-Key {key}".encode()
        self._why_unready, self._page = why_unready, page
        self.max_connected = _SPARE * (max_clients + (MAX_VIEWERS if page else 0))

    def judge(self, connection: ServerConnection, request: Request) -> Response | None:
        """Answer a question about health, or turn a client away; None lets it in."""
        path = request.path.partition("?")[0]
        if path == "/healthz":
            return connection.respond(HTTPStatus.OK, "OK\n")
        if path == "/readyz":
            why = self._why_unready()
            status = HTTPStatus.SERVICE_UNAVAILABLE if why else HTTPStatus.OK
            return connection.respond(status, f"{why or 'ready'}\n")
        assert isinstance(connection, Connection)
        if path == VIEW and self._page is not None:
            connection.is_viewer = True
            if self.num_inside(viewers=True) > MAX_VIEWERS:
                words = f"{MAX_VIEWERS} pages are open, and no more are served\n"
                return connection.respond(HTTPStatus.SERVICE_UNAVAILABLE, words)
            return self._page(connection, request)
        if "Origin" in request.headers:
            words = "a page of a browser does not drive\n"
            return connection.respond(HTTPStatus.FORBIDDEN, words)
        if not self._has_key(request):
            return connection.respond(HTTPStatus.UNAUTHORIZED, "a key is needed, and not this\n")
        if self.num_inside(viewers=False) > self.max_clients:
            words = f"{self.max_clients} clients are connected, and no more are served\n"
            return connection.respond(HTTPStatus.SERVICE_UNAVAILABLE, words)
        return None

    def close(self) -> None:
        """Nobody gets in any more; those who connected and said nothing are not told."""
        self.is_closed = True
        for connection in [*self.inside]:
            if connection.protocol.state is State.CONNECTING:
                connection.abort()

    def num_inside(self, *, viewers: bool) -> int:
        """Pages, or everybody else."""
        return sum(connection.is_viewer == viewers for connection in self.inside)

    def _has_key(self, request: Request) -> bool:
        if self._key is None:
            return True
        shown = request.headers.get_all("Authorization")
        given = shown[0] if len(shown) == 1 else ""
        return hmac.compare_digest(given.encode("utf-8", "surrogateescape"), self._key)


def address(scheme: str, host: str, port: int) -> str:
    """As it is typed into a browser."""
    return f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}"


def secured(cert: Path, key: Path) -> ssl.SSLContext:
    """TLS 1.2 or newer, with that certificate.

    Raises:
        ValueError: the two files are no certificate and its key.
        OSError: they cannot be read.
    """
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    for file in (cert, key):
        file.open("rb").close()  # whose absence the library tells without its name
    try:
        # No password: asking for one would make a service wait for somebody at a terminal.
        context.load_cert_chain(cert, key, password=lambda: "")
    except ssl.SSLError as error:
        raise ValueError(
            f"{cert} and {key} are no certificate and its private key in PEM, without a password "
            f"({error.reason or error}); make a pair with openssl req -x509"
        ) from None
    return context


@contextlib.contextmanager
def listening(host: str, port: int) -> Iterator[None]:
    """Says what to do where an address cannot be listened at.

    Raises:
        ValueError: it cannot.
    """
    try:
        yield
    except OSError as error:
        raise ValueError(
            f"{host}:{port}: cannot be listened at ({error.strerror or error}); choose another "
            "--host or --port"
        ) from None


def options(doors: Doors, *, heartbeat_s: float, max_bytes: int) -> dict[str, Any]:
    """What `websockets` is told for either server.

    Args:
        heartbeat_s: between two pings, and how long an answer may take.
        max_bytes: of a message that comes in.
    """
    return {
        "create_connection": functools.partial(Connection, doors=doors),
        "process_request": doors.judge,
        "compression": None,
        "open_timeout": heartbeat_s,
        "ping_interval": heartbeat_s,
        "ping_timeout": heartbeat_s,
        "close_timeout": 1.0,
        "max_size": max_bytes,
        "max_queue": 2,
        "server_header": None,
        "logger": _quiet(),
    }


def _quiet() -> logging.Logger:
    """What strangers do to a connection is no news, and no traceback."""
    logger = logging.getLogger("anchorvla.serve")
    if not logger.handlers:
        logger.addHandler(logging.NullHandler())
        logger.propagate = "--debug" in sys.argv
    return logger
