"""The page of a loop that runs in this process, for browsers of this machine.

It listens in a thread of its own, which ends with the block, or with the process. The garbage
collector is off while a loop drives, and nothing here needs it: what a drawing leaves behind is
counted by reference.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import secrets
import threading
from collections.abc import Callable, Iterator

from websockets.asyncio.server import ServerConnection, serve

from ..sight import Scene
from .connections import MAX_VIEWERS, VIEW, Connection, Doors, address, listening, options
from .viewers import Show, Viewers

HOST = "127.0.0.1"
HEARTBEAT_S = 5.0
MAX_UNREAD, MAX_MESSAGE = 4 << 20, 1024
LEAVES_S = 2.0


@contextlib.contextmanager
def on_page(
    scene: Scene, show: Show, port: int, *, complain: Callable[[Exception], None]
) -> Iterator[str]:
    """Serve the page of `scene` inside the block; its address, key included.

    Raises:
        ValueError: the port cannot be listened at.
    """
    lookout = _Lookout(scene, show, port, complain)
    lookout.thread.start()
    lookout.is_there.wait()
    if lookout.error is not None:
        raise lookout.error
    try:
        yield lookout.address
    finally:
        lookout.leave()


class _Lookout:
    def __init__(
        self, scene: Scene, show: Show, port: int, complain: Callable[[Exception], None]
    ) -> None:
        self._make = functools.partial(
            Viewers, scene, show, secrets.token_urlsafe(16), HEARTBEAT_S, complain
        )
        self._port, self.address = port, ""
        self.is_there = threading.Event()
        self.error: Exception | None = None
        self.thread = threading.Thread(target=self._run, name="page", daemon=True)

    def leave(self) -> None:
        with contextlib.suppress(RuntimeError):  # it has ended by itself
            self._loop.call_soon_threadsafe(self._over.set)
        self.thread.join(LEAVES_S)

    def _run(self) -> None:
        try:
            asyncio.run(self._serve())
        except Exception as error:
            self.error = error
        finally:
            self.is_there.set()

    async def _serve(self) -> None:
        self._loop, self._over = asyncio.get_running_loop(), asyncio.Event()
        viewers = self._make()
        doors = Doors(MAX_VIEWERS, MAX_UNREAD, viewers.key, lambda: "", viewers.respond)

        async def handle(connection: ServerConnection) -> None:
            assert isinstance(connection, Connection)
            await viewers.serve(connection)

        with listening(HOST, self._port):
            listener = await serve(
                handle,
                HOST,
                self._port,
                **options(doors, heartbeat_s=HEARTBEAT_S, max_bytes=MAX_MESSAGE),
            )
        port = next(iter(listener.sockets)).getsockname()[1]
        self.address = f"{address('http', HOST, port)}{VIEW}#{viewers.key}"
        self.is_there.set()
        await self._over.wait()
        doors.close()
        await viewers.close("the run has ended")
        listener.close()
        await listener.wait_closed()
