"""A server under test: how it is reached, and an observation that it should answer."""

from __future__ import annotations

import contextlib
import http.client
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from websockets.exceptions import ConnectionClosed, InvalidHandshake
from websockets.sync.client import ClientConnection, connect

from device_tests.errors import RemoteError
from runtime.control.server.wire import Bounds, WireError, pack, unpack

BOUNDS = Bounds(num_bytes=1 << 28, num_values=1 << 20, depth=16)
"""Of what a server may send."""


@dataclass(frozen=True, kw_only=True)
class Reply:
    """What came back; neither a map nor words if the connection ended."""

    message: Mapping[str, Any] | None = None
    words: str | None = None
    close_code: int | None = None


@dataclass(frozen=True, kw_only=True)
class Target:
    """A server that answers at an address."""

    host: str
    port: int
    key: str | None
    answer_s: float
    metadata: Mapping[str, Any]
    observation: Mapping[str, Any]

    @classmethod
    def meet(
        cls,
        address: str,
        *,
        key: str | None,
        answer_s: float,
        observation: Mapping[str, Any] | None,
    ) -> Target:
        """Connect once, and make up an observation from the metadata.

        Raises:
            ValueError: the address is none, or nobody says what an observation is.
            RemoteError: no server of this protocol answers there.
        """
        host, _, port = address.rpartition(":")
        if not host or not port.isdigit():
            raise ValueError(f"{address}: an address is HOST:PORT, such as 127.0.0.1:8000")
        target = cls(
            host=host, port=int(port), key=key, answer_s=answer_s, metadata={}, observation={}
        )
        try:
            with target.connected() as connection:
                metadata = read(connection, answer_s)
        except (OSError, InvalidHandshake, ConnectionClosed, WireError) as error:
            raise RemoteError(
                f"{address}: no policy server answers ({error or 'in time'}); start it, and name "
                "its key with --key-file if it has one"
            ) from None
        if metadata.message is None:
            raise RemoteError(f"{address}: sent {metadata} where its metadata should come")
        if observation is None:
            observation = made_up(metadata.message)
        return replace(target, metadata=metadata.message, observation=observation)

    @contextlib.contextmanager
    def connected(
        self, *, key: str | None = None, origin: str | None = None
    ) -> Iterator[ClientConnection]:
        """A connection on which nothing was read yet."""
        shown = key or self.key
        headers = {} if shown is None else {"Authorization": f"Api-Key {shown}"}
        with connect(
            f"ws://{self.host}:{self.port}",
            additional_headers=headers,
            origin=origin,  # type: ignore[arg-type]
            compression=None,
            max_size=BOUNDS.num_bytes,
            open_timeout=self.answer_s,
            close_timeout=1.0,
        ) as connection:
            yield connection

    @contextlib.contextmanager
    def client(self) -> Iterator[ClientConnection]:
        """A connection whose metadata were read."""
        with self.connected() as connection:
            connection.recv(self.answer_s)
            yield connection

    def ask(self, connection: ClientConnection, message: Any) -> Reply:
        """Send a map, or bytes or a text as they are, and read what comes back.

        Raises:
            TimeoutError: nothing did.
        """
        data = message if isinstance(message, (bytes, str)) else pack(message)
        with contextlib.suppress(ConnectionClosed):  # what it said before can still be read
            connection.send(data)
        return read(connection, self.answer_s)

    def get(self, path: str) -> tuple[int, str]:
        """Status and body of an HTTP request."""
        plain = http.client.HTTPConnection(self.host, self.port, timeout=self.answer_s)
        with contextlib.closing(plain):
            plain.request("GET", path)
            answer = plain.getresponse()
            return answer.status, answer.read(4096).decode("utf-8", "replace").strip()


def read(connection: ClientConnection, timeout_s: float) -> Reply:
    """The next message.

    Raises:
        TimeoutError: none came.
        WireError: it is no map of msgpack.
    """
    try:
        data = connection.recv(timeout_s)
    except ConnectionClosed as closed:
        return Reply(close_code=closed.rcvd.code if closed.rcvd else 1006)
    if isinstance(data, str):
        return Reply(words=data)
    return Reply(message=unpack(data, BOUNDS))


def made_up(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """An observation for inputs that are declared as ours are.

    Raises:
        ValueError: they are not declared.
    """
    random = np.random.default_rng(0)
    made: dict[str, Any] = {}
    try:
        for name, declared in metadata["inputs"].items():
            if not declared["is_required"]:
                continue
            shape = tuple(declared["shape"])
            if declared["kind"] == "text":
                made[name] = "move the hand to the green marker"
            elif declared["dtype"] == "uint8":
                made[name] = random.integers(0, 256, shape, np.uint8)
            else:
                made[name] = np.zeros(shape, np.float32)
    except (KeyError, TypeError, AttributeError):
        raise ValueError(
            "the server does not declare its inputs: give an observation that it understands with "
            "--observation FILE.npz"
        ) from None
    return made


def read_observation(file: Path) -> dict[str, Any]:
    """Arrays and texts by key, from a file of `np.savez`.

    Raises:
        ValueError: it is none.
    """
    try:
        with np.load(file, allow_pickle=False) as arrays:
            return {
                name: str(array) if array.dtype.kind == "U" else array
                for name, array in arrays.items()
            }
    except (zipfile.BadZipFile, ValueError, AttributeError) as error:
        raise ValueError(
            f"{file}: no observation ({error}): write one with np.savez, an array per key"
        ) from None
