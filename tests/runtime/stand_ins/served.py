"""A policy that answers with what it was told, and servers of it in this process.

Its actions [2, 3] are: the tick of its episode, the first pixel of the frame and that of the
anchor; below them the first number of the state, the length of the instruction, the seed.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import msgpack
import numpy as np
import pytest
from openpi_client import msgpack_numpy
from openpi_client.websocket_client_policy import WebsocketClientPolicy

from runtime.control.server.contract import Contract
from runtime.control.server.server import PolicyServer, ServeConfig
from runtime.control.server.session import Session
from runtime.declarations import Input, Output, Prompt, Tensor
from runtime.episode import Answer
from runtime.errors import ObservationError
from runtime.graph import Graph

PICTURE = (8, 6, 3)
LARGE = (1 << 20,)
NOBODY: Any = SimpleNamespace(idle=lambda **told: None)
"""A session that nobody asks anything."""
MAX_WAIT_S = 30.0
"""For what happens in milliseconds: a test that waits so long has failed."""


def graph(**more: Input) -> Graph:
    picture = {"kind": "image", "shape": PICTURE, "dtype": "uint8"}
    prompt = Prompt(tokenizer="t", template="{instruction}", end_ids=())
    inputs = {
        "anchor": Input(source="latch", pace="episode", of="frame", **picture),
        "instruction": Input(
            kind="text", source="operator", shape=(9,), dtype="int64", pace="event", prompt=prompt
        ),
        "frame": Input(source="robot", pace="tick", **picture),
        "state": Input(
            kind="vector", source="robot", shape=(2,), dtype="float32", pace="tick", unit="rad"
        ),
        "noise": Input(kind="noise", source="drawn", shape=(2, 3), dtype="float32", pace="tick"),
        "leftover": Input(
            kind="leftover", source="loop", shape=(2, 4), dtype="float32", pace="tick"
        ),
        **more,
    }
    outputs = {"chunk": Output(units=("m", "m", "1"), step_s=0.05)}
    outputs |= {"likeness": Output(), "map": Output()}
    tensors = {"chunk": Tensor(shape=(2, 3)), "likeness": Tensor(shape=(1,))}
    tensors["map"] = Tensor(shape=LARGE)
    return Graph(inputs=inputs, tensors=tensors, stages=(), outputs=outputs)


class Episode:
    stats = None

    def __init__(self, policy: Policy, seed: int, told: dict[str, Any]) -> None:
        self.policy, self.seed, self.step = policy, seed, 0
        self.told, self.latched = dict(told), False

    def give(self, **told: Any) -> None:
        self.told |= told

    def latch(self, name: str) -> None:
        assert name == "anchor"
        self.told.pop("anchor", None)

    def act(self, seen: dict[str, Any]) -> Answer:
        self.policy.before_act()
        self.told.setdefault("anchor", seen["frame"])
        numbers = [self.step, seen["frame"].flat[0], self.told["anchor"].flat[0]]
        numbers += [seen["state"][0], len(self.told["instruction"]), self.seed]
        self.step += 1
        actions = np.array(numbers, np.float32).reshape(2, 3)
        leftover = seen.get("leftover", np.zeros((2, 4), np.float32))
        return Answer(np.where(leftover[:, :1] == 1, leftover[:, 1:], actions), {}, 0.05, None)

    def ask(self, name: str) -> Any:
        return np.array([0.5], np.float32) if name == "likeness" else np.zeros(LARGE, np.float32)


class Policy:
    embodiment = "tester"
    chunk_shape = (2, 3)

    def __init__(self) -> None:
        self.graph = graph()
        self.inputs = self.graph.inputs
        recipe = SimpleNamespace(name="none")
        manifest = SimpleNamespace(
            policy="stand-in", recipe=recipe, license="none", content_sha256="0" * 64
        )
        self.bundle = SimpleNamespace(manifest=manifest)
        self.before_act: Callable[[], object] = lambda: None

    def start(self, *, seed: int, anchor_policy: object, **told: Any) -> Episode:
        return Episode(self, seed, told)

    def take(self, name: str, value: Any) -> Any:
        if (
            isinstance(value, np.ndarray)
            and value.dtype.kind == "f"
            and not np.isfinite(value).all()
        ):
            raise ObservationError(f"{name} holds NaN or infinity")
        return value


def observation(frame: int = 7, **more: Any) -> dict[str, Any]:
    picture = np.full(PICTURE, frame, np.uint8)
    return {"frame": picture, "state": np.array([0.25, 2.0]), "prompt": "go", **more}


@contextlib.contextmanager
def serving(policy: Any = None, *, seed: int = 0, **options: Any) -> Iterator[PolicyServer]:
    """A server in a thread of its own, ready; when the block ends it is told to stop."""
    policy = policy or Policy()
    session = Session(policy, seed)
    own = options.pop("own", lambda: contextlib.nullcontext(session))
    wait, ends = options.pop("wait", True), options.pop("ends", True)
    more = {name: options.pop(name) for name in ("clock", "complain", "show") if name in options}
    config = ServeConfig(port=0, **options)
    ready, began = threading.Event(), threading.Event()
    state: dict[str, Any] = {}

    async def run() -> None:
        state["server"] = server = PolicyServer(Contract(policy.graph), own, config, **more)
        state["stop"], state["loop"] = asyncio.Event(), asyncio.get_running_loop()
        began.set()
        state["ended"] = await server.run(state["stop"], lambda session: ready.set())

    def work() -> None:
        try:
            asyncio.run(run())
        except BaseException as error:
            state["error"] = error
        finally:
            ready.set(), began.set()

    thread = threading.Thread(target=work)
    thread.start()
    assert (ready if wait else began).wait(MAX_WAIT_S)
    if "error" in state:
        thread.join()
        raise state["error"]
    try:
        yield state["server"]
    finally:
        with contextlib.suppress(RuntimeError):  # the loop has ended by itself
            state["loop"].call_soon_threadsafe(state["stop"].set)
        thread.join(MAX_WAIT_S)
        assert not thread.is_alive()
    assert "error" not in state and state["ended"] == ends


def packed_array(shape: Any, dtype: str, data: bytes) -> dict[bytes, Any]:
    """An array as openpi-client would write it, whatever it claims."""
    return {b"__ndarray__": True, b"data": data, b"dtype": dtype, b"shape": shape}


def packed(message: dict[str, Any]) -> bytes:
    """By the library that openpi's client uses, which is not ours."""
    data = msgpack_numpy.packb(message)
    assert isinstance(data, bytes) and msgpack.unpackb(data)
    return data


class FakeClock:
    """Stands still until it is set."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def client(server: PolicyServer, key: str | None = None) -> WebsocketClientPolicy:
    """openpi's, unmodified."""
    return WebsocketClientPolicy("127.0.0.1", server.port, api_key=key)


def leave(client: WebsocketClientPolicy) -> None:
    """Close its connection, for which its class has no method."""
    client._ws.close()


def told(client: WebsocketClientPolicy, message: dict[str, Any]) -> str:
    """The text that refuses a message."""
    with pytest.raises(RuntimeError, match="Error in inference server") as refused:
        client.infer(message)
    words = str(refused.value).split(":\n", 1)[1]
    assert "\n" not in words and "Traceback" not in words
    return words


def until_nobody_drives(client: WebsocketClientPolicy) -> None:
    """Until the server has noticed that a connection ended."""
    until(lambda: client.infer({"ask": "status"})["silent_s"] is None)


def until(comes: Callable[[], bool]) -> None:
    """Wait for what comes in milliseconds."""
    end = time.monotonic() + MAX_WAIT_S
    while not comes():
        assert time.monotonic() < end


def get(server: PolicyServer, path: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{server.port}{path}") as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()
