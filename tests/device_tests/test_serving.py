"""The table about a server: ours passes, and each row fails of a server that breaks it."""

import asyncio
import contextlib
import threading

import numpy as np
import pytest
from openpi_client import msgpack_numpy
from websockets.asyncio.server import serve

from device_tests.serving.__main__ import main
from device_tests.serving.checks import CHECKS
from tests.runtime.stand_ins.served import MAX_WAIT_S, observation, serving

KEY = "0123456789abcdef0123"


@pytest.fixture
def key_file(tmp_path):
    file = tmp_path / "key"
    file.write_text(KEY + "\n")
    file.chmod(0o600)
    return file


def table(out):
    """Sentence -> ok, FAIL or ?."""
    return {line[5:57].strip(): line[:4].strip() for line in out.splitlines()}


def test_all_of_it_holds_of_ours(key_file, capsys):
    with serving(key=KEY) as server:
        code = main([f"127.0.0.1:{server.port}", "--key-file", str(key_file)])
    marks = table(capsys.readouterr().out)
    assert list(marks) == list(CHECKS)
    marks.pop("others are heard while it computes")  # the stand-in computes nothing
    assert set(marks.values()) == {"ok"}
    assert code == 0


def test_what_cannot_be_told_is_no_failure(capsys):
    with serving() as server:
        assert main([f"127.0.0.1:{server.port}"]) == 0
    assert table(capsys.readouterr().out)["a wrong key is turned away"] == "?"


@contextlib.contextmanager
def careless(**faults):
    """A server of the protocol as it is usually written: one loop, no bounds, its errors sent."""
    ready, state = threading.Event(), {}

    async def handle(connection):
        await connection.send(msgpack_numpy.packb(faults.get("metadata", {})))
        async for data in connection:
            if faults.get("is_silent"):
                continue
            try:
                seen = msgpack_numpy.unpackb(data)
                _ = seen["state"]
                actions = np.zeros(faults.get("shape", (2, 3)), np.float32)
                for _ in range(faults.get("answers", 1)):
                    await connection.send(msgpack_numpy.packb({"actions": actions}))
            except Exception:
                import traceback

                await connection.send(traceback.format_exc())
                await connection.close(1011)

    async def run():
        state["stop"], state["loop"] = asyncio.Event(), asyncio.get_running_loop()
        server = await serve(handle, "127.0.0.1", 0, max_size=None, compression=None)
        state["port"] = next(iter(server.sockets)).getsockname()[1]
        ready.set()
        await state["stop"].wait()
        server.close()
        await server.wait_closed()

    thread = threading.Thread(target=lambda: asyncio.run(run()))
    thread.start()
    assert ready.wait(MAX_WAIT_S)
    yield state["port"]
    state["loop"].call_soon_threadsafe(state["stop"].set)
    thread.join(MAX_WAIT_S)
    assert not thread.is_alive()


@pytest.fixture
def observed(tmp_path):
    sent = observation()
    file = tmp_path / "observation.npz"
    np.savez(file, frame=sent["frame"], state=sent["state"], prompt=sent["prompt"])
    return ["--observation", str(file), "--answer-s", "5"]


def test_a_careless_server_answers_and_keeps_little_else(observed, capsys, monkeypatch):
    monkeypatch.setattr("device_tests.serving.checks.UNKNOWN_CAP", 1 << 20)
    with careless() as port:
        assert main([f"127.0.0.1:{port}", *observed]) == 1
    out = capsys.readouterr().out
    good = {name for name, mark in table(out).items() if mark == "ok"}
    assert good == {
        "the first message is a map of metadata",
        "an observation is answered by actions",
        "each observation has one answer",
        "pings are answered",
        "after all this a good client is served",
    }
    assert "a traceback went out: KeyError: 'state'" in out
    assert "1048577 bytes were taken" in out


@pytest.mark.parametrize(
    ("faults", "row", "seen"),
    [
        ({"answers": 2}, "each observation has one answer", "a map of actions beside 3 answers"),
        (
            {"metadata": {"chunk_shape": [4, 3]}},
            "an observation is answered by actions",
            "actions [2, 3], the metadata say [4, 3]",
        ),
        ({"shape": (6,)}, "an observation is answered by actions", "no actions [T, A]: a map of"),
        ({"is_silent": True}, "an observation is answered by actions", "nothing came within 0.2 s"),
    ],
)
def test_a_fault_is_in_its_row(faults, row, seen, observed, capsys, monkeypatch):
    monkeypatch.setattr("device_tests.serving.checks.CHECKS", {row: CHECKS[row]})
    wait = ["--answer-s", "0.2"] if "is_silent" in faults else []
    with careless(**faults) as port:
        assert main([f"127.0.0.1:{port}", *observed, *wait]) == 1
    out = capsys.readouterr().out
    assert table(out) == {row: "FAIL"} and seen in out


def test_a_server_that_declares_nothing_needs_an_observation(capsys):
    with careless() as port:
        assert main([f"127.0.0.1:{port}"]) == 2
    assert "does not declare its inputs: give an observation" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["localhost"], 2, "localhost: an address is HOST:PORT, such as 127.0.0.1:8000"),
        (["127.0.0.1:1"], 7, "127.0.0.1:1: no policy server answers ("),
        (["127.0.0.1:1", "--answer-s", "0"], 2, "--answer-s must be in (0, 3600], got 0"),
        (["127.0.0.1:1", "--observation", __file__], 2, "no observation ("),
    ],
)
def test_what_keeps_it_from_a_table_is_one_line(words, code, said, capsys):
    assert main(words) == code
    err = capsys.readouterr().err
    assert said in err and err.count("\n") == 1


def test_a_wrong_key_is_told_as_such(key_file, capsys):
    with serving(key=KEY[::-1]) as server:
        assert main([f"127.0.0.1:{server.port}", "--key-file", str(key_file)]) == 7
    assert "HTTP 401" in capsys.readouterr().err
