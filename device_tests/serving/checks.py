"""The rows of the table: each a sentence about a server, and how it is found out.

A check says what it saw. `Broken` means that the sentence does not hold, `Untold` that it cannot be
told of this server.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from websockets.exceptions import ConnectionClosed, InvalidStatus, WebSocketException
from websockets.sync.client import ClientConnection

from device_tests.serving.target import Reply, Target, read
from runtime.control.server.wire import WireError, pack

Check = Callable[[Target], str]
UNKNOWN_CAP = 64 << 20
"""Bytes of a message that nobody needs, for a server that names no cap."""
TOO_BIG = 1009
QUIET_S = 0.2


class Broken(Exception):
    """What was seen instead."""


class Untold(Exception):
    """Why it cannot be told."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """Of one sentence."""

    holds: bool | None
    """None if it cannot be told."""
    seen: str


def judge(target: Target) -> Iterator[tuple[str, Verdict]]:
    """One sentence after the other."""
    for name, check in CHECKS.items():
        yield name, _verdict(check, target)


def _verdict(check: Check, target: Target) -> Verdict:
    try:
        return Verdict(True, check(target))
    except Broken as error:
        return Verdict(False, str(error))
    except Untold as error:
        return Verdict(None, str(error))
    except TimeoutError:
        return Verdict(False, f"nothing came within {target.answer_s:g} s")
    except WireError as error:
        return Verdict(False, f"what came is no message: {error}")
    except (WebSocketException, OSError) as error:
        return Verdict(False, f"the connection failed: {error}")


def _metadata(target: Target) -> str:
    return f"{len(target.metadata)} keys"


def _actions(target: Target) -> str:
    with target.client() as one:
        actions = _acted(target.ask(one, target.observation))
    declared = target.metadata.get("chunk_shape")
    if declared is not None and list(actions.shape) != list(declared):
        raise Broken(f"actions {list(actions.shape)}, the metadata say {declared}")
    return f"{actions.dtype} {list(actions.shape)}"


def _one_answer_each(target: Target) -> str:
    with target.client() as one:
        for _ in range(3):
            one.send(pack(target.observation))
        for _ in range(3):
            _acted(read(one, target.answer_s))
        try:
            more = read(one, QUIET_S)
        except TimeoutError:
            return "3 of 3"
    raise Broken(f"{_seen(more)} beside 3 answers")


def _health(target: Target) -> str:
    return _status(target, "/healthz")


def _readiness(target: Target) -> str:
    return _status(target, "/readyz")


def _request_id(target: Target) -> str:
    with target.client() as one:
        reply = target.ask(one, {**target.observation, "request_id": 7})
        if reply.message is None or reply.message.get("request_id") != 7:
            raise Broken(_seen(reply))
        refused = target.ask(one, {**target.observation, "request_id": 7})
    return f"7 came back; used again: {_words(refused)}"


def _refused(message: object) -> Check:
    """A text of one line, no traceback, and no answer."""

    def check(target: Target) -> str:
        with target.client() as one:
            return _words(target.ask(one, message))

    return check


def _forged(dtype: str, shape: list[int], data: bytes) -> Check:
    """In place of the first array of the observation, an array that is none."""
    array = {b"__ndarray__": True, b"data": data, b"dtype": dtype, b"shape": shape}

    def check(target: Target) -> str:
        names = [n for n, value in target.observation.items() if isinstance(value, np.ndarray)]
        if not names:
            raise Untold("the observation has no array")
        with target.client() as one:
            return _words(target.ask(one, {**target.observation, names[0]: array}))

    return check


def _deep(target: Target) -> str:
    with target.client() as one:
        return _words(target.ask(one, b"\x81\xa4deep" + b"\x91" * 2000 + b"\xc0"))


def _outlives(target: Target) -> str:
    with target.client() as one:
        target.ask(one, b"\xc1")
        _acted(target.ask(one, target.observation))
    return "answered after a refusal"


def _cap(target: Target) -> str:
    told = target.metadata.get("max_message_bytes")
    size = (told if isinstance(told, int) else UNKNOWN_CAP) + 1
    with target.client() as one:
        reply = target.ask(one, bytes(size))
    if reply.close_code != TOO_BIG:
        raise Broken(f"{size} bytes were taken: {_seen(reply)}")
    return f"{size} bytes: closed with {TOO_BIG}"


def _one_driver(target: Target) -> str:
    with target.client() as driver, target.client() as other:
        _acted(target.ask(driver, target.observation))
        words = _words(target.ask(other, target.observation))
        _acted(target.ask(driver, target.observation))
    return words


def _observer(target: Target) -> str:
    with target.client() as driver, target.client() as other:
        _acted(target.ask(driver, target.observation))
        reply = target.ask(other, {"ask": "status"})
        if reply.message is None or "actions" in reply.message:
            raise Broken(_seen(reply))
    return f"{len(reply.message)} values"


def _key(target: Target) -> str:
    if target.key is None:
        raise Untold("no --key-file was given")
    wrong = target.key + "x"
    return _turned_away(lambda: target.connected(key=wrong))


def _origin(target: Target) -> str:
    return _turned_away(lambda: target.connected(origin="http://example.org"))


def _pongs(target: Target) -> str:
    with target.client() as one:
        if not one.ping().wait(target.answer_s):
            raise Broken(f"no pong within {target.answer_s:g} s")
    return "a pong"


def _heard_meanwhile(target: Target) -> str:
    """A question on another connection is answered before an observation that came earlier."""
    with target.client() as driver, target.client() as other:
        _acted(target.ask(driver, target.observation))
        driver.send(pack(target.observation))
        _wait_begun(driver)
        pong = other.ping()
        if not pong.wait(target.answer_s):
            raise Broken(f"no pong within {target.answer_s:g} s")
        try:
            reply = read(driver, 0)
        except TimeoutError:
            _acted(read(driver, target.answer_s))
            return "a pong while it computed"
    _acted(reply)
    raise Untold("it computes too quickly, or hears nobody meanwhile")


def _wait_begun(connection: ClientConnection) -> None:
    """Until the server has read what was sent: its pong comes behind it."""
    connection.ping().wait(1.0)


def _still_good(target: Target) -> str:
    with target.client() as one:
        _acted(target.ask(one, target.observation))
    return "answered"


def _status(target: Target, path: str) -> str:
    status, body = target.get(path)
    if status != 200:
        raise Broken(f"{path}: {status} {body[:60]}")
    return f"{path}: 200 {body[:60]}"


def _acted(reply: Reply) -> np.ndarray:
    """The actions of an answer."""
    actions = None if reply.message is None else reply.message.get("actions")
    if not isinstance(actions, np.ndarray) or actions.ndim != 2 or actions.dtype.kind != "f":
        raise Broken(f"no actions [T, A]: {_seen(reply)}")
    if not np.isfinite(actions).all():
        raise Broken("actions that are not finite")
    return actions


def _words(reply: Reply) -> str:
    """What a refusal says, in one line."""
    if reply.words is None:
        raise Broken(f"no text: {_seen(reply)}")
    if "Traceback (most recent" in reply.words or "\n" in reply.words.strip():
        last = reply.words.strip().splitlines()[-1]
        raise Broken(f"a traceback went out: {last[:60]}")
    return reply.words[:60]


def _turned_away(knock: Callable[[], object]) -> str:
    try:
        with knock() as connection:  # type: ignore[attr-defined]
            connection.recv(1.0)
    except InvalidStatus as error:
        return f"turned away with {error.response.status_code}"
    except (TimeoutError, ConnectionClosed) as error:
        raise Broken(f"let in, then: {error or 'nothing'}") from None
    raise Broken("let in")


def _seen(reply: Reply) -> str:
    if reply.message is not None:
        return f"a map of {', '.join(map(str, reply.message))}"[:70]
    if reply.words is not None:
        return f"the text {' '.join(reply.words.split())[:60]!r}"
    return f"the connection closed with {reply.close_code}"


CHECKS: dict[str, Check] = {
    "the first message is a map of metadata": _metadata,
    "an observation is answered by actions": _actions,
    "each observation has one answer": _one_answer_each,
    "health is told": _health,
    "readiness is told apart from health": _readiness,
    "a request id comes back": _request_id,
    "what is no msgpack is refused in words": _refused(b"\xc1\xc1"),
    "a text is refused in words": _refused("hello"),
    "an observation without values is refused in words": _refused({}),
    "an array of objects is refused in words": _forged("|O", [1], bytes(8)),
    "a shape beyond its bytes is refused in words": _forged("|u1", [2**40, 2**40], b"abc"),
    "deep nesting is refused in words": _deep,
    "a refusal leaves the connection as it was": _outlives,
    "a message over the cap is not taken": _cap,
    "a second client cannot act": _one_driver,
    "an observer hears what goes on": _observer,
    "a wrong key is turned away": _key,
    "no page in a browser gets in": _origin,
    "pings are answered": _pongs,
    "others are heard while it computes": _heard_meanwhile,
    "after all this a good client is served": _still_good,
}
