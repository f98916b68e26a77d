"""`anchorvla serve BUNDLE`: the real policy behind openpi's client, and how the command ends."""

import signal
import sys

import numpy as np
import pytest
from openpi_client.websocket_client_policy import WebsocketClientPolicy

from export.build import build
from export.config import BuildConfig
from models.demo import CHECKPOINT, EPISODES
from runtime.__main__ import main
from runtime.control.server.worker import Worker
from tests.fuzz_server import fuzz, served
from tests.openpi_episodes import succeeded

STATE = np.array([0.0, 0.6, 0.2, 1.0], np.float32)


@pytest.fixture(scope="module")
def server(demo_bundle):
    with served(demo_bundle, "--seed", "5", "--anchor", "first") as (process, port):
        yield process, port


def test_openpi_s_client_gets_the_actions_of_the_policy_bit_for_bit(server, policy, image):
    client = WebsocketClientPolicy("127.0.0.1", server[1])
    assert client.get_server_metadata()["chunk_shape"] == list(policy.chunk_shape)

    def ask(number, **more):
        seen = {"observation/image": image(number), "observation/state": STATE.astype(np.float64)}
        return client.infer({**seen, **more})["actions"]

    def expected(number):
        return episode.act({"frame": image(number), "state": STATE}).actions

    episode = policy.start(instruction="touch the red marker", seed=5)
    np.testing.assert_array_equal(ask(1, prompt="touch the red marker"), expected(1))
    np.testing.assert_array_equal(ask(2), expected(2))
    episode.say("open the drawer")
    np.testing.assert_array_equal(ask(3, prompt="open the drawer"), expected(3))
    episode.latch("anchor")
    np.testing.assert_array_equal(ask(4, latch=["anchor"]), expected(4))
    np.testing.assert_array_equal(ask(5), expected(5))
    episode = policy.start(instruction="open the drawer", seed=6)
    np.testing.assert_array_equal(ask(6, prompt="open the drawer", reset=True), expected(6))
    client._ws.close()


@pytest.mark.full
def test_openpi_s_client_drives_the_shipped_policy_to_success(simulator, tmp_path):
    """At 9 of 10 by chance, fewer than 3 of 6 succeed in 1 of 800 runs; `make openpi-episodes`."""
    bundle = build(
        BuildConfig(
            recipe="float32", checkpoint=CHECKPOINT, out=tmp_path / "bundle", image_size=(112, 112),
            tokens=64, golden=EPISODES / "touch-red-1.npz", compile_check=False,
        )
    )  # fmt: skip
    with served(bundle) as (_, port):
        assert succeeded(port, "touch-red", 6) >= 3


def test_mutated_messages_do_no_harm(server):
    """`make fuzz-server` sends 100,000."""
    process, port = server
    figures = fuzz(port, 300, seed=7, good_every=100)
    assert figures.wrong == [] and process.poll() is None
    assert figures.num_good == 3 and figures.outcomes["refused in words"] > 100


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_ends_when_it_is_told_and_says_what_it_did(number, demo_bundle):
    with served(demo_bundle) as (process, port):
        client = WebsocketClientPolicy("127.0.0.1", port)
        with pytest.raises(RuntimeError, match="lacks"):
            client.infer({})
        process.send_signal(number)
        out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (0, "")
    assert out == "stopped after 0 episodes, 0 ticks; refused: 1 observation\n"


@pytest.fixture
def key_file(tmp_path):
    file = tmp_path / "key"
    file.write_text("0123456789abcdef")
    file.chmod(0o600)
    return file


def refused(words, capsys, code=2):
    assert main(["serve", *map(str, words)]) == code
    err = capsys.readouterr().err
    assert err.startswith("error: ") and err.count("\n") == 1
    return err


def test_an_open_address_without_a_key_is_refused_before_anything_is_read(tmp_path, capsys):
    err = refused([tmp_path / "none", "--host", "0.0.0.0"], capsys)
    assert "0.0.0.0 is reached from other machines, so clients need a key" in err


@pytest.mark.parametrize(
    ("key", "words"),
    [
        ("0123456789abcde", "a key is one line of at least 16 characters"),
        ("0123456789 abcdef", "without spaces"),
        ("0123456789abcde\u00e9", "a key is one line"),
        ("0123456789abcdef\n0123456789abcdef", "a key is one line"),
    ],
)
def test_a_key_that_is_easily_guessed_is_refused(key, words, key_file, capsys):
    key_file.write_text(key)
    assert words in refused(["none", "--key-file", key_file], capsys)


def test_a_key_that_others_may_read_is_refused(key_file, capsys):
    key_file.chmod(0o640)
    err = refused(["none", "--key-file", key_file], capsys)
    assert f"other users may read this key: chmod 600 {key_file}" in err


def test_words_that_make_no_sense_are_refused_before_anything_is_read(capsys):
    assert "unknown anchor policy 'x'" in refused(["none", "--anchor", "x"], capsys)
    assert "lease_s=1 is shorter than" in refused(["none", "--lease-s", "1"], capsys)
    assert "port must be in" in refused(["none", "--port", "-1"], capsys)
    assert "none" in refused(["none"], capsys, code=3)


def test_without_websockets_it_says_what_to_install(monkeypatch, capsys):
    for name in [n for n in sys.modules if n.startswith("runtime.control.server.")]:
        if name.rsplit(".", 1)[1] in ("server", "connections"):
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.delattr("runtime.control.server.server", raising=False)
    monkeypatch.setitem(sys.modules, "websockets.asyncio.server", None)
    assert "pip install 'anchorvla-runtime[serve]'" in refused(["none"], capsys)


class Owned:
    """What a worker opens and closes."""

    closed = False

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.closed = True


def test_a_worker_does_one_job_after_the_other_and_closes_what_it_owns():
    owned = Owned()
    worker = Worker(lambda: owned)
    worker.start()
    seen = []
    jobs = [worker.submit(lambda of, n=n: seen.append((n, of))) for n in range(20)]
    failing = worker.submit(lambda of: 1 / 0)
    assert isinstance(failing.exception(30), ZeroDivisionError)
    assert [job.result(30) for job in jobs] == [None] * 20
    assert seen == [(n, owned) for n in range(20)]
    assert worker.busy_s == 0 and worker.stop(30) and owned.closed
