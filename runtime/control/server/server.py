"""The server: metadata first, then an answer to every message, as openpi's clients expect.

Observations are computed in a thread of their own, one at a time, so a slow policy or a slow client
keeps nobody else waiting: handshakes, pings and questions are answered meanwhile. A message that is
refused is answered by a text of one line, and the connection goes on; a failure of ours is a text
too, and ends it. No traceback leaves this process.

Both sides notice silence. The server pings; a client that does not answer is disconnected and loses
the lease. A client is answered within `answer_s` or told that it will not be.
"""

from __future__ import annotations

import asyncio
import ipaddress
import secrets
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.exceptions import ConnectionClosed

from ...cli.command import one_line
from ...errors import ObservationError
from .connections import VIEW, Connection, Doors, address, listening, options, secured
from .contract import Contract, Request, question, take_id
from .lease import Lease, LeaseError, StopError
from .scene import ServedScene
from .session import Session
from .viewers import Show, Viewers
from .wire import WireError, pack, unpack
from .worker import Worker

MAX_WORDS = 500
"""Characters of a refusal: it may quote what a client sent."""
INTERNAL_ERROR = 1011
"""A close code of RFC 6455."""
STOPPED = 4001
"""The same, free for any use: an operator stopped the robot that this client drove."""
MAX_REASON = 120
"""Bytes of what a close code is said with."""
_UNREAD = 4 << 20


class UnreadyError(Exception):
    """The policy does not answer now."""


class SilentError(Exception):
    """The policy has not answered in time."""


KINDS: dict[type[Exception], str] = {
    WireError: "malformed",
    ObservationError: "observation",
    LeaseError: "lease",
    StopError: "stopped",
    UnreadyError: "unready",
}
"""Why messages are refused, as the status counts them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ServeConfig:
    """How a policy is served."""

    host: str = "127.0.0.1"
    """Address to listen at."""

    port: int = 8000
    """0 takes one that is free."""

    key: str | None = None
    """What clients have to show; needed at any address but this machine's own."""

    cert: Path | None = None
    """PEM file with the certificate by which clients know this server; with it, it speaks TLS."""

    cert_key: Path | None = None
    """PEM file with its private key."""

    heartbeat_s: float = 5.0
    """Between pings. A client that leaves one unanswered for so long is dead."""

    answer_s: float = 10.0
    """An observation is answered within so long, or refused."""

    lease_s: float = 10.0
    """A driver that is silent for longer may be replaced."""

    max_clients: int = 16
    """Connected at a time, observers included."""

    def __post_init__(self) -> None:
        if not 0 <= self.port < 65536:
            raise ValueError(f"port must be in [0, 65535], got {self.port}")
        for name in ("heartbeat_s", "answer_s", "lease_s"):
            if not 0 < getattr(self, name) <= 3600:
                raise ValueError(f"{name} must be in (0, 3600], got {getattr(self, name)}")
        if self.lease_s < self.answer_s:
            raise ValueError(
                f"lease_s={self.lease_s:g} is shorter than answer_s={self.answer_s:g}: a driver "
                "would lose its lease while it waits for an answer"
            )
        if self.max_clients < 1:
            raise ValueError(f"max_clients must be at least 1, got {self.max_clients}")
        if (self.cert is None) != (self.cert_key is None):
            raise ValueError("a certificate and its private key belong together: give both")
        if self.key is None and not is_loopback(self.host):
            raise ValueError(
                f"{self.host or 'every address'} is reached from other machines, so clients need a "
                "key: give one with --key-file, or listen at 127.0.0.1"
            )


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches that address."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:  # a name, which may lead anywhere
        return False


class PolicyServer:
    """Serves one policy.

    Args:
        contract: what may be sent to it.
        own: opens the policy, in the thread that will compute; called once.
        config: how it is served.
        clock: of the lease, and of what has taken too long.
        complain: told of our own failures.
        show: of the page on which operators look on, and stop what drives; none by default.
    """

    def __init__(
        self,
        contract: Contract,
        own: Callable[[], AbstractContextManager[Session]],
        config: ServeConfig,
        *,
        clock: Callable[[], float] = time.monotonic,
        complain: Callable[[Exception], None] = lambda error: None,
        show: Show | None = None,
    ) -> None:
        self.contract, self.config = contract, config
        self.lease = Lease(config.lease_s, clock)
        self.worker: Worker[Session] = Worker(
            own, clock, lambda session: session.idle(is_driven=self.lease.holder is not None)
        )
        self.refused = dict.fromkeys([*KINDS.values(), "failed"], 0)
        """Messages that were not answered as they wished, by kind."""
        self.viewers: Viewers | None = None
        if show is not None:
            scene = ServedScene(self)
            key = config.key or secrets.token_urlsafe(16)
            self.viewers = Viewers(scene, show, key, config.heartbeat_s, complain)
        self.doors = Doors(
            config.max_clients,
            _UNREAD + contract.reply_bytes,
            config.key,
            self.why_unready,
            None if self.viewers is None else self.viewers.respond,
        )
        self.port = config.port
        self._complain = complain
        self.session: Session | None = None
        """Once the policy is warm."""
        self._metadata = b""
        self._ready = asyncio.Event()
        self._is_closing = False
        self._halt = asyncio.Event()
        self._busy, self._halted = set[int](), set[int]()
        self._late: Future[Any] | None = None
        """The last observation, if it was not answered in time."""

    async def run(self, stop: asyncio.Event, on_ready: Callable[[Session], None]) -> bool:
        """Listen, load, and answer until `stop`.

        Args:
            stop: ends it; the answer that is being computed is waited for.
            on_ready: called when the policy is warm.

        Returns:
            Whether the policy came to its end too. If not, its thread still runs.

        Raises:
            ValueError: the address cannot be listened at.
            Exception: whatever opening the policy raised.
        """
        listener = await self._listen()
        self.port = next(iter(listener.sockets)).getsockname()[1]
        self.worker.start()
        opened = asyncio.wrap_future(self.worker.opened)
        stopped = asyncio.ensure_future(stop.wait())
        either: set[asyncio.Future[Any]] = {opened, stopped}
        try:
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            if not stopped.done():
                self._open(opened.result())
                on_ready(opened.result())
                await stopped
        finally:
            self._is_closing = True
            stopped.cancel()
            self.doors.close()
            if self.viewers is not None:
                await self.viewers.close("the server is closing")
            listener.close()
            await listener.wait_closed()
        if self.session is None:
            return False  # it loads, for as long as that takes
        return await asyncio.to_thread(self.worker.stop, self.config.answer_s)

    @property
    def address(self) -> str:
        """For clients."""
        return address("ws" if self.config.cert is None else "wss", self.config.host, self.port)

    @property
    def page(self) -> str:
        """For browsers; with the key of this process, if nobody chose one. Such a one is secret."""
        scheme = "http" if self.config.cert is None else "https"
        key = "" if self.viewers is None or self.config.key else f"#{self.viewers.key}"
        return f"{address(scheme, self.config.host, self.port)}{VIEW}{key}"

    async def _listen(self) -> Server:
        config = self.config
        security = None
        if config.cert is not None and config.cert_key is not None:
            security = secured(config.cert, config.cert_key)
        with listening(config.host, config.port):
            listener: Server = await serve(
                self._handle,
                config.host,
                config.port,
                ssl=security,
                **options(
                    self.doors,
                    heartbeat_s=config.heartbeat_s,
                    max_bytes=self.contract.bounds.num_bytes,
                ),
            )
        return listener

    def why_unready(self) -> str:
        """Why an observation would not be answered; empty if it would."""
        if self._is_closing:
            return "closing"
        if self.lease.why_stopped:
            return self.lease.why_stopped
        if self.session is None:
            return "loading"
        busy_s = self.worker.busy_s
        is_late = self._late is not None and not self._late.done()
        if busy_s > self.config.answer_s or is_late:
            return f"the policy has not answered for {busy_s:.1f} s"
        return ""

    def stop(self, why: str) -> None:
        """Whoever drives is told so at once, and nobody drives until `release`."""
        driver = self.lease.stop(why)
        self._halt.set()
        if self.session is not None:
            self.session.heart.stopped(why)
        if driver is None:
            return
        self._halted.add(driver)
        for connection in self.doors.inside:
            if connection.number == driver and driver not in self._busy:
                asyncio.ensure_future(self._end_halted(connection))

    def release(self, number: int) -> bool:
        """Take the stop of that number back; False if it is not the present one."""
        newest = max((connection.number for connection in self.doors.inside), default=-1)
        is_released = self.lease.release(number, newest + 1)
        if is_released:
            self._halt.clear()
        return is_released

    def _open(self, session: Session) -> None:
        config, policy = self.config, session.policy
        described = self.contract.describe(policy.bundle.manifest, policy.embodiment)
        described |= {"server": "anchorvla", "heartbeat_s": config.heartbeat_s}
        described |= {"answer_s": config.answer_s, "lease_s": config.lease_s}
        self._metadata, self.session = pack(described), session
        self._ready.set()

    async def _handle(self, connection: ServerConnection) -> None:
        """One client, from its handshake until it leaves."""
        assert isinstance(connection, Connection)
        if connection.is_viewer and self.viewers is not None:
            await self.viewers.serve(connection)
            return
        waiting = {asyncio.ensure_future(w) for w in (self._ready.wait(), connection.wait_closed())}
        await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        for task in waiting:
            task.cancel()
        try:
            await self._send(connection, self._metadata)
            await self._converse(connection)
        except ConnectionClosed:
            pass
        finally:
            self.lease.drop(connection.number)
            self._halted.discard(connection.number)
            self._busy.discard(connection.number)

    async def _converse(self, connection: Connection) -> None:
        last_id, previous_s = -1, None
        async for data in connection:
            start, number, is_ours = time.monotonic(), None, False
            self._busy.add(connection.number)
            try:
                message = self._unpacked(data)
                number = take_id(message)
                if number is not None and number <= last_id:
                    raise WireError(f"request_id must be above the last one, {last_id}")
                last_id = last_id if number is None else number
                answer = await self._answer(connection.number, message)
                if number is not None:
                    answer["request_id"] = number
                if previous_s is not None and "server_timing" in answer:
                    answer["server_timing"]["prev_total_ms"] = 1e3 * previous_s
                await self._send(connection, pack(answer))
            except ConnectionClosed:
                raise
            except Exception as error:
                words, is_ours = self._refusal(error)
                which = "" if number is None else f" (request_id {number})"
                await self._send(connection, words + which)
            if is_ours:
                await connection.close(INTERNAL_ERROR, "internal error, told in the text before")
                return
            self._busy.discard(connection.number)
            if connection.number in self._halted:
                await self._end_halted(connection)
                return
            previous_s = time.monotonic() - start

    def _unpacked(self, data: str | bytes) -> dict[str, Any]:
        if isinstance(data, str):
            raise WireError("a message is binary msgpack, got a text")
        return unpack(data, self.contract.bounds)

    async def _answer(self, client: int, message: Mapping[str, Any]) -> dict[str, Any]:
        if question(message):
            return self._status(client)
        request = self.contract.request(message)
        if (why := self.why_unready()) and not self.lease.why_stopped:
            raise UnreadyError(f"{why}: nothing is answered now; /readyz tells when it is")
        lease = self.lease.use(client)
        try:
            return await self._act(request, lease)
        finally:
            self.lease.answered(client)

    async def _act(self, request: Request, lease: int) -> dict[str, Any]:
        """Raises:
        SilentError: the policy took too long, and may still compute.
        StopError: an operator has stopped it meanwhile.
        """
        job = self.worker.submit(lambda session: session.act(request, lease))
        future: asyncio.Future[dict[str, Any]] = asyncio.wrap_future(job)
        future.add_done_callback(lambda done: done.cancelled() or done.exception())
        halt = asyncio.ensure_future(self._halt.wait())
        either: set[asyncio.Future[Any]] = {future, halt}
        await asyncio.wait(
            either, timeout=self.config.answer_s, return_when=asyncio.FIRST_COMPLETED
        )
        halt.cancel()
        if self.lease.why_stopped:
            raise StopError(f"{self.lease.why_stopped}: the robot has to stand")
        self._late = None if future.done() else job
        if self._late is not None:
            raise SilentError(f"no answer within {self.config.answer_s:g} s")
        return future.result()

    def _status(self, client: int) -> dict[str, Any]:
        lease, why = self.lease, self.why_unready()
        silent_s = None if lease.holder is None else lease.clock() - lease.used_at
        driver = {"you_drive": client == lease.holder, "silent_s": silent_s, "leases": lease.count}
        status = {
            "ready": not why,
            "why_unready": why,
            "clients": self.doors.num_inside(viewers=False),
        }
        stop = {"stopped": lease.why_stopped, "stops": lease.num_stops}
        if self.viewers is not None:
            stop |= {"viewers": len(self.viewers.pages)}
            stop |= {"drawings_dropped": self.viewers.num_dropped}
        assert self.session is not None  # a client hears nothing before
        told = {**status, **driver, **stop, "refused": dict(self.refused)}
        return told | self.session.status()

    def _refusal(self, error: Exception) -> tuple[str, bool]:
        """What to say to a client, and whether the failure is ours."""
        for kind, name in KINDS.items():
            if isinstance(error, kind):
                self.refused[name] += 1
                return one_line(error)[:MAX_WORDS], False
        self.refused["failed"] += 1
        self._complain(error)
        if isinstance(error, SilentError):
            return one_line(error), True
        return "the policy failed, and this tick was undone; the server's own output says how", True

    async def _end_halted(self, connection: Connection) -> None:
        words = (self.lease.why_stopped or "an operator pressed stop").encode()
        await connection.close(STOPPED, words[:MAX_REASON].decode("ascii", "ignore"))

    async def _send(self, connection: Connection, data: str | bytes) -> None:
        """Raises: ConnectionClosed: the client is gone, or reads too slowly."""
        await connection.deliver(data, self.config.answer_s)
