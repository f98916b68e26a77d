"""A served policy: openpi's own client is answered, and nobody else does harm. Real sockets."""

import contextlib
import threading

import numpy as np
import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

from runtime.control.server.server import ServeConfig
from runtime.errors import BundleError, EngineError
from tests.runtime.stand_ins import strangers
from tests.runtime.stand_ins.served import (
    MAX_WAIT_S,
    NOBODY,
    PICTURE,
    FakeClock,
    Policy,
    client,
    get,
    leave,
    observation,
    packed,
    serving,
    told,
    until,
    until_nobody_drives,
)

KEY = "0123456789abcdef0123"


def test_one_client_drives_and_another_may_only_look_on(server, driver):
    driver.infer(observation(5))
    other = client(server)
    status = other.infer({"ask": "status"})
    assert status["ready"] and not status["you_drive"] and status["step"] == 1
    assert status["clients"] == 2 and status["silent_s"] >= 0
    assert "another client drives, and acted" in told(other, observation(9))
    assert driver.infer({"ask": "status"})["you_drive"]
    np.testing.assert_array_equal(driver.infer(observation(6))["actions"][0], [1, 6, 5])
    leave(driver)
    until_nobody_drives(other)
    np.testing.assert_array_equal(other.infer(observation(9))["actions"][0], [0, 9, 9])
    leave(other)


def test_a_driver_that_is_silent_can_be_replaced_and_is_told():
    clock = FakeClock()
    with serving(clock=clock, lease_s=10, answer_s=10) as server:
        first, second = client(server), client(server)
        first.infer(observation(1))
        clock.now += 10
        assert "acted 10.0 s ago" in told(second, observation(2))
        clock.now += 0.5
        assert second.infer(observation(2))["step"] == 0
        words = told(first, observation(3))
        assert "this client was silent for 10.5 s, and another one took over" in words
        leave(second)
        assert "connect again" in told(first, observation(3))
        leave(first)
        again = client(server)
        assert again.infer(observation(3))["episode"] == 3
        leave(again)


def test_health_and_readiness_answer_anybody(server):
    assert get(server, "/healthz") == (200, "OK\n")
    assert get(server, "/readyz") == (200, "ready\n")
    assert get(server, "/")[0] == 426


def test_a_message_over_the_cap_ends_its_connection_and_no_other(server, driver):
    cap = driver.get_server_metadata()["max_message_bytes"]
    declared = 2 * np.prod(PICTURE) * 4 + (2 + 6 + 8) * 9 + 4 * 2000  # as floats, and UTF-8
    assert declared <= cap <= declared + 16 * 1024
    other = client(server)
    other._ws.send(bytes(cap + 1))
    with pytest.raises(ConnectionClosed, match="1009"):
        other._ws.recv()
    assert driver.infer(observation())["step"] == 0


def test_a_cap_is_not_passed_in_fragments(server):
    with strangers.connected(server.port) as one:
        cap, part = server.contract.bounds.num_bytes, bytes(4096)
        one.sendall(strangers.frame(strangers.BINARY, part, is_final=False))
        with contextlib.suppress(ConnectionError):
            for _ in range(cap // len(part) + 1):
                one.sendall(strangers.frame(0, part, is_final=False))
        assert strangers.is_closed(one)


def test_no_page_of_a_browser_gets_in_and_nothing_is_inflated(server):
    address = f"ws://127.0.0.1:{server.port}"
    with pytest.raises(InvalidStatus, match="403"), connect(address, origin="http://127.0.0.1"):
        pass
    with connect(address, compression="deflate") as one:
        assert one.protocol.extensions == []


def test_more_clients_than_are_served_are_turned_away_and_health_is_not():
    with serving(max_clients=2) as server:
        first, second = client(server), client(server)
        with pytest.raises(InvalidStatus, match="503"):
            client(server)
        with strangers.connected(server.port, handshake=False):
            assert get(server, "/healthz") == (200, "OK\n")
        leave(first)
        leave(second)


def test_a_flood_of_connections_is_cut_off():
    with serving(max_clients=1, heartbeat_s=30) as server, contextlib.ExitStack() as many:
        flood = [
            many.enter_context(strangers.connected(server.port, handshake=False)) for _ in range(6)
        ]
        assert any(strangers.is_closed(one) for one in flood[4:])


def test_who_has_no_key_or_another_gets_nothing_but_health():
    with serving(key=KEY) as server:
        for key in (None, KEY + "0", KEY[:-1], KEY.upper()):
            with pytest.raises(InvalidStatus, match="401"):
                client(server, key)
        address, twice = f"ws://127.0.0.1:{server.port}", [("Authorization", f"Api-Key {KEY}")] * 2
        with pytest.raises(InvalidStatus, match="401"), connect(address, additional_headers=twice):
            pass
        assert get(server, "/healthz")[0] == get(server, "/readyz")[0] == 200
        holder = client(server, KEY)
        assert holder.infer(observation())["step"] == 0
        leave(holder)


@pytest.mark.parametrize("host", ["0.0.0.0", "", "::", "192.0.2.1", "example.org"])
def test_an_address_that_others_reach_needs_a_key(host):
    with pytest.raises(ValueError, match=r"clients need a key: give one with --key-file"):
        ServeConfig(host=host)
    assert ServeConfig(host=host, key=KEY).host == host


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.9.1", "::1", "localhost"])
def test_this_machine_needs_none(host):
    assert ServeConfig(host=host).key is None


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"port": 65536}, r"port must be in \[0, 65535\], got 65536"),
        ({"heartbeat_s": 0}, r"heartbeat_s must be in \(0, 3600\], got 0"),
        ({"answer_s": float("nan")}, "answer_s must be in"),
        ({"lease_s": 9.0}, "lease_s=9 is shorter than answer_s=10"),
        ({"max_clients": 0}, "max_clients must be at least 1"),
    ],
)
def test_a_configuration_that_makes_no_sense_is_refused(given, words):
    with pytest.raises(ValueError, match=words):
        ServeConfig(**given)


def test_a_dead_driver_is_noticed_and_the_next_one_drives():
    with serving(heartbeat_s=0.2) as server, strangers.connected(server.port) as dead:
        dead.sendall(strangers.frame(strangers.BINARY, packed(observation())))
        assert strangers.is_closed(dead)
        one = client(server)
        until_nobody_drives(one)
        assert one.infer(observation(3))["step"] == 0
        assert one.infer({"ask": "status"})["leases"] == 2
        leave(one)


def test_a_connection_that_never_says_what_it_wants_is_ended():
    with serving(heartbeat_s=0.2) as server:
        with strangers.connected(server.port, handshake=False) as one:
            one.sendall(strangers.HANDSHAKE[:40])
            assert strangers.is_closed(one)
        with strangers.connected(server.port) as one:
            one.sendall(strangers.frame(strangers.BINARY, bytes(100))[:50])
            assert strangers.is_closed(one)


def test_who_asks_and_never_reads_is_cut_off_and_keeps_nobody_waiting(server, driver, monkeypatch):
    monkeypatch.setattr(server.doors, "max_unread", 1 << 16)
    with strangers.connected(server.port, timeout_s=MAX_WAIT_S) as greedy:
        pings = strangers.frame(strangers.PING, bytes(125)) * 1000
        with pytest.raises(ConnectionError):
            for _ in range(1000):  # 130 MB, of which the sockets hold a few
                greedy.sendall(pings)
    assert driver.infer(observation())["step"] == 0


def test_who_does_not_read_its_answers_is_ended_and_its_lease_too():
    config = {"heartbeat_s": 30, "answer_s": 0.3, "lease_s": 30}
    with serving(**config) as server, strangers.connected(server.port) as slow:
        asked = strangers.frame(strangers.BINARY, packed(observation(outputs=["map"])))
        slow.sendall(asked * 20)  # 84 MB of answers
        one = client(server)
        until_nobody_drives(one)
        assert one.infer(observation())["step"] == 0
        leave(one)


@pytest.fixture
def held():
    """A server whose policy waits in each tick until it is let go."""
    policy, inside, go = Policy(), threading.Event(), threading.Event()

    def wait():
        inside.set()
        assert go.wait(MAX_WAIT_S)

    policy.before_act = wait
    with serving(policy, answer_s=0.3, lease_s=0.3) as server:
        yield server, inside, go
        go.set()


def test_while_the_policy_computes_others_are_heard(held):
    server, inside, go = held
    driver = client(server)
    driver._ws.send(packed(observation()))
    assert inside.wait(MAX_WAIT_S)
    looker = client(server)
    assert looker.infer({"ask": "status"})["ticks"] == 0
    assert driver._ws.ping().wait(MAX_WAIT_S)
    assert get(server, "/healthz") == (200, "OK\n")
    go.set()
    leave(driver)
    leave(looker)


def test_a_policy_that_never_answers_is_an_error_and_not_silence(held):
    server, _, go = held
    driver = client(server)
    assert told(driver, observation(request_id=1)) == "no answer within 0.3 s (request_id 1)"
    with pytest.raises(ConnectionClosed, match="1011"):
        driver._ws.recv()
    status, words = get(server, "/readyz")
    assert status == 503 and words.startswith("the policy has not answered for ")
    other = client(server)
    assert "nothing is answered now; /readyz tells when it is" in told(other, observation())
    assert not other.infer({"ask": "status"})["ready"]
    go.set()
    until(lambda: get(server, "/readyz")[0] == 200)
    answer = other.infer(observation(4))
    np.testing.assert_array_equal(answer["actions"][0], [0, 4, 4])
    leave(other)


def test_a_failure_of_ours_is_told_without_its_words():
    policy, seen = Policy(), []

    def fail():
        raise EngineError("/secret/bundle/engines/vision.onnx: out of memory")

    policy.before_act = fail
    with serving(policy, complain=seen.append) as server:
        one = client(server)
        words = told(one, observation())
        assert words == (
            "the policy failed, and this tick was undone; the server's own output says how"
        )
        with pytest.raises(ConnectionClosed, match="1011"):
            one._ws.recv()
        assert [str(error)[:7] for error in seen] == ["/secret"]
        policy.before_act = lambda: None
        again = client(server)
        assert again.infer(observation(2))["step"] == 0
        assert again.infer({"ask": "status"})["refused"]["failed"] == 1
        leave(again)


def test_while_it_loads_it_is_healthy_and_not_ready_and_clients_wait():
    from runtime.control.server.session import Session

    go = threading.Event()

    @contextlib.contextmanager
    def own():
        assert go.wait(MAX_WAIT_S)
        yield Session(Policy(), 0)

    with serving(own=own, wait=False) as server:
        until(lambda: server.port != 0)
        assert get(server, "/healthz") == (200, "OK\n")
        assert get(server, "/readyz") == (503, "loading\n")
        with connect(f"ws://127.0.0.1:{server.port}") as one:
            with pytest.raises(TimeoutError):
                one.recv(timeout=0.1)
            go.set()
            assert isinstance(one.recv(timeout=MAX_WAIT_S), bytes)
        assert get(server, "/readyz") == (200, "ready\n")


def test_who_stops_it_while_it_loads_does_not_wait_for_that():
    go = threading.Event()

    @contextlib.contextmanager
    def own():
        assert go.wait(MAX_WAIT_S)
        yield NOBODY

    with serving(own=own, wait=False, ends=False) as server:
        assert server.why_unready() == "loading"
    assert not go.is_set() and server.why_unready() == "closing"
    go.set()


def test_a_bundle_that_does_not_load_ends_the_server():
    @contextlib.contextmanager
    def own():
        raise BundleError("no engine of that name")
        yield

    with pytest.raises(BundleError, match="no engine of that name"), serving(own=own):
        raise AssertionError("not reached")


def test_an_address_that_is_taken_says_so(server):
    import asyncio

    from runtime.control.server.contract import Contract
    from runtime.control.server.server import PolicyServer

    async def run():
        second = PolicyServer(
            Contract(Policy().graph),
            lambda: contextlib.nullcontext(NOBODY),
            ServeConfig(port=server.port),
        )
        await second.run(asyncio.Event(), lambda session: None)

    with pytest.raises(
        ValueError, match=rf"127.0.0.1:{server.port}: cannot be listened at \(.*use"
    ):
        asyncio.run(run())


def test_when_it_stops_clients_are_told_and_strangers_dropped():
    with contextlib.ExitStack() as strange:
        with serving(heartbeat_s=30) as server:
            one = client(server)
            one.infer(observation())
            strange.enter_context(strangers.connected(server.port, handshake=False))
        with pytest.raises(ConnectionClosed, match="1001"):
            one.infer(observation())
