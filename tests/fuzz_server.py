"""python -m tests.fuzz_server BUNDLE [--messages 100000] [--seed 0]

Mutated messages, handshakes and frames against `anchorvla serve BUNDLE`, in a process of its own.
It has to answer each message within a second by actions, by words without a traceback, or by
closing that connection for what was wrong with it. Between them good clients, openpi's own, have
to be served within a second. Prints the figures, of what was sent until then after Ctrl-C; exits 1
if the server died, hung, failed, or let a good client wait.
"""

from __future__ import annotations

import argparse
import contextlib
import random
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from openpi_client import msgpack_numpy
from openpi_client.websocket_client_policy import WebsocketClientPolicy
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

from runtime.cli.progress import Progress
from tests.runtime.stand_ins import strangers

LIMIT_S = 1.0
PICTURE = np.random.default_rng(0).integers(0, 256, (112, 112, 3), np.uint8)
CLOSES = {1002, 1003, 1007, 1009}
"""Codes that blame the client (RFC 6455, section 7.4.1). 1011 would blame the server."""
HEADERS = 400
"""Bytes at either end of a message, where names, types and lengths are."""
TYPES = bytes.fromhex("80818f909fa0bfc0c1c2c4c6c7cacbcfd0d3d4d9dbdcdddedfff")
"""First bytes of values of msgpack."""
LENGTHS = [
    b"\xdd\xff\xff\xff\xff",
    b"\xdf\x7f\xff\xff\xff",
    b"\xc6\xff\xff\xff\xff",
    b"\xdb\x00\x10\x00\x00",
]


@dataclass
class Figures:
    """What came of it."""

    outcomes: Counter[str] = field(default_factory=Counter)
    longest_answer_s: float = 0.0
    num_good: int = 0
    longest_good_s: float = 0.0
    wrong: list[str] = field(default_factory=list)
    """What should not have happened."""


def observation(**more: Any) -> dict[str, Any]:
    """One that the demo policy answers."""
    seen = {"observation/image": PICTURE, "observation/state": np.array([0.0, 0.6, 0.2, 1.0])}
    return {**seen, "prompt": "touch the red marker", **more}


def message(chance: random.Random) -> bytes:
    """A message that was fine once, or nearly."""
    more = chance.choice([{}, {"request_id": chance.randrange(99)}, {"reset": True, "seed": 3}])
    base: dict[Any, Any] = observation(**more) if chance.random() < 0.7 else {"ask": "status"}
    if chance.random() < 0.5:
        _forge(base, chance)
        with contextlib.suppress(ValueError, TypeError, OverflowError):
            return bytes(msgpack_numpy.packb(base))
    data = bytearray(msgpack_numpy.packb(observation(**more)))
    for _ in range(chance.choice([1, 1, 2, 4])):
        _damage(data, chance)
    return bytes(data)


def _forge(base: dict[Any, Any], chance: random.Random) -> None:
    """Another value under one of its names, or under a new one."""
    key = chance.choice([*base, "latch", "outputs", "anchor", "noise", "ask", "x", 7, b"b", ""])
    deep: Any = 1
    for _ in range(chance.choice([2, 6, 500])):
        deep = [deep] if chance.random() < 0.5 else {"a": deep}
    array = {
        b"__ndarray__": True,
        b"data": chance.choice([b"", bytes(4), bytes(37632), "text", None]),
        b"dtype": chance.choice(["|u1", "<f4", "|O", "<U9", "<M8[s]", ">f8", "f4,f4", "", 3, None]),
        b"shape": chance.choice([[], [0], [4], [112, 112, 3], [2**40, 2**40], [-1, 4], "4", [[4]]]),
    }
    values = [None, True, -1, 2**64 - 1, 1e308, float("nan"), "", "x" * 9000, "\x00\x1b", "\udc80"]
    values += [[], {}, [1.0] * 4, ["a"], deep, array, {b"__npgeneric__": True}, b"\xff" * 99]
    values += [np.zeros(4), np.full(4, np.inf), np.zeros((3, 112, 112), np.uint8)]
    base[key] = chance.choice(values)


def _damage(data: bytearray, chance: random.Random) -> None:
    """In the headers as a rule; a picture has more bytes than all else."""
    end = min(len(data), HEADERS)
    at = chance.randrange(end or 1)
    at = len(data) - 1 - at if chance.random() < 0.3 and data else at
    way = chance.randrange(7)
    if not data or way == 0:
        data[at:at] = chance.randbytes(chance.choice([1, 2, 16]))
    elif way == 1:
        data[at] ^= 1 << chance.randrange(8)
    elif way == 2:
        data[at] = chance.choice(TYPES)
    elif way == 3:
        del data[at:]
    elif way == 4:
        del data[at : at + chance.choice([1, 2, 5, 50])]
    elif way == 5:
        data[at : at + 1] = chance.choice(LENGTHS)
    else:
        data[at:at] = data[: chance.randrange(end)] * chance.choice([1, 3])


def fuzz(
    port: int,
    num_messages: int,
    seed: int,
    *,
    good_every: int = 500,
    figures: Figures | None = None,
    tell: Callable[[int], object] = lambda done: None,
) -> Figures:
    """So many mutated messages, and a good client after every `good_every` of them."""
    chance, figures, done = random.Random(seed), figures or Figures(), 0
    while done < num_messages:
        with connect(f"ws://127.0.0.1:{port}", max_size=None, close_timeout=LIMIT_S) as one:
            one.recv(LIMIT_S)
            until = min(num_messages, done - done % good_every + good_every)
            while done < until:
                done += 1
                if chance.random() < 0.02:
                    _stranger(port, chance)
                    figures.outcomes["a stranger's bytes"] += 1
                elif not _send(one, chance, figures):
                    break
        if done % good_every == 0 or done == num_messages:
            _serve_good(port, figures)
            tell(done)
        if figures.wrong:
            break
    return figures


def _send(one: ClientConnection, chance: random.Random, figures: Figures) -> bool:
    """One message, and what came back; whether the connection is still open."""
    data = message(chance)
    start = time.monotonic()
    is_open, outcome = True, "answered"
    try:
        one.send(data if chance.random() < 0.98 else data.decode("latin1"))
        reply = one.recv(LIMIT_S)
        if isinstance(reply, str):
            outcome = "refused in words"
            if "\n" in reply or "Traceback" in reply or "the policy failed" in reply:
                figures.wrong.append(f"{reply!r} to {data[:200]!r}")
        elif "actions" in (answer := msgpack_numpy.unpackb(reply)):
            outcome = "answered by actions"
            if answer["actions"].shape != (10, 4) or not np.isfinite(answer["actions"]).all():
                figures.wrong.append(f"{answer['actions']} to {data[:200]!r}")
    except TimeoutError:
        figures.wrong.append(f"nothing within {LIMIT_S:g} s to {data[:200]!r}")
        return False
    except ConnectionClosed as closed:
        code = closed.rcvd.code if closed.rcvd else None
        is_open, outcome = False, f"closed with {code}"
        if code not in CLOSES:
            figures.wrong.append(f"closed with {code} for {data[:200]!r}")
    figures.longest_answer_s = max(figures.longest_answer_s, time.monotonic() - start)
    figures.outcomes[outcome] += 1
    return is_open


def _stranger(port: int, chance: random.Random) -> None:
    """Bytes that no client sends, of a handshake or behind one; then it leaves."""
    with (
        contextlib.suppress(OSError),
        contextlib.closing(
            strangers.connected(port, handshake=False, timeout_s=LIMIT_S)
        ) as stranger,
    ):
        handshake = bytearray(strangers.HANDSHAKE)
        if chance.random() < 0.5:
            _damage(handshake, chance)
            stranger.sendall(handshake)
        else:
            frame = bytearray(strangers.frame(chance.randrange(16), chance.randbytes(60)))
            _damage(frame, chance)
            stranger.sendall(handshake + frame * chance.choice([1, 50]))
        if chance.random() < 0.3:
            stranger.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")  # a reset


def _serve_good(port: int, figures: Figures) -> None:
    start = time.monotonic()
    try:
        client = WebsocketClientPolicy("127.0.0.1", port)
        actions = client.infer(observation())["actions"]
        client._ws.close()
        if actions.shape != (10, 4):
            figures.wrong.append(f"a good client got actions {actions.shape}")
    except (OSError, RuntimeError, ConnectionClosed) as error:
        figures.wrong.append(f"a good client was not served: {error}")
    seconds = time.monotonic() - start
    if seconds > LIMIT_S:
        figures.wrong.append(f"a good client waited {seconds:.2f} s")
    figures.num_good += 1
    figures.longest_good_s = max(figures.longest_good_s, seconds)


@contextlib.contextmanager
def served(bundle: Path, *options: str) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """`anchorvla serve` on a free port, ready: its process and the port."""
    process = subprocess.Popen(
        [sys.executable, "-m", "runtime", "serve", str(bundle), "--port", "0", *options],
        cwd=Path(__file__).parents[1],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,  # Ctrl-C is ours
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        if " on ws://" not in line:
            raise RuntimeError(f"the server did not start: {process.communicate()[1]}")
        yield process, int(line.split(" on ws://")[1].split(" ")[0].rsplit(":", 1)[1])
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        process.wait(60)
        for pipe in (process.stdout, process.stderr):
            if pipe is not None:
                pipe.close()


def _resident_mb(pid: int) -> float:
    (line,) = (x for x in Path(f"/proc/{pid}/status").read_text().splitlines() if "VmRSS" in x)
    return int(line.split()[1]) / 1024


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz_server", description=__doc__)
    parser.add_argument("bundle", type=Path, metavar="BUNDLE")
    parser.add_argument("--messages", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    start = time.monotonic()
    with served(options.bundle) as (process, port):
        fuzz(port, 200, options.seed + 1)  # what it needs for all of it, it needs by now
        before = _resident_mb(process.pid)
        figures, lines = Figures(), Progress(sys.stderr)
        lines.step(f"{options.messages} messages")
        with contextlib.suppress(KeyboardInterrupt):
            fuzz(
                port,
                options.messages,
                options.seed,
                figures=figures,
                tell=lambda done: lines.count(done, options.messages),
            )
        lines.close()
        crashed = process.poll() is not None
        grown = 0.0 if crashed else _resident_mb(process.pid) - before
    for outcome, count in figures.outcomes.most_common():
        print(f"{count:>8} {outcome}")
    print(f"{figures.outcomes.total()} messages in {time.monotonic() - start:.0f} s")
    print(
        f"longest answer {1e3 * figures.longest_answer_s:.0f} ms of {1e3 * LIMIT_S:.0f} ms allowed"
    )
    print(f"{figures.num_good} good clients between, longest {1e3 * figures.longest_good_s:.0f} ms")
    print(f"memory of the server: {grown:+.1f} MB")
    print(
        f"crashed: {'yes' if crashed else 'no'}; exit code when told to stop: {process.returncode}"
    )
    for line in figures.wrong:
        print(f"WRONG: {line}")
    return int(crashed or bool(figures.wrong) or process.returncode != 0)


if __name__ == "__main__":
    sys.exit(main())
