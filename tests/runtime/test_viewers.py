"""Who looks on at a served policy, and presses stop: real sockets, without a browser."""

import contextlib
import json
import re
import shutil
import ssl
import subprocess
import threading
import urllib.request

import numpy as np
import pytest
from openpi_client.websocket_client_policy import WebsocketClientPolicy
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

from runtime.control.server import viewers
from runtime.control.server.connections import MAX_VIEWERS
from runtime.control.server.lease import Lease, LeaseError, StopError
from runtime.control.server.server import ServeConfig
from runtime.pages.live.page import LivePage
from tests.runtime.stand_ins import strangers
from tests.runtime.stand_ins.served import (
    MAX_WAIT_S,
    NOBODY,
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


class Plain:
    """Shows the words of a scene, and counts."""

    html = b"<p>a page</p>"
    headers = {"Content-Security-Policy": "default-src 'none'"}

    def __init__(self):
        self.num_drawn, self.before = 0, lambda: None

    def draw(self, sight):
        self.num_drawn += 1
        self.before()
        stop = sight.stop and [sight.stop.number, sight.stop.why]
        return json.dumps({"figures": {f.name: f.words for f in sight.figures}, "stop": stop})


@pytest.fixture(autouse=True)
def quickly(monkeypatch):
    monkeypatch.setattr(viewers, "PERIOD_S", 0.01)


@pytest.fixture
def show():
    return Plain()


@pytest.fixture
def server(show):
    with serving(show=show) as server:
        yield server


@contextlib.contextmanager
def page(server, key=None, origin=None):
    """Opened as the page's script does, with the key already sent."""
    with connect(f"ws://127.0.0.1:{server.port}/view", origin=origin) as socket:
        say(socket, key=key or server.viewers.key)
        yield socket


def say(socket, **words):
    socket.send(json.dumps(words))


def drawing(socket, **words):
    """The next one; it is said to be shown."""
    while True:
        got = json.loads(socket.recv(timeout=MAX_WAIT_S))
        say(socket, shown=got["number"])
        if all(got["drawing"][name] == value for name, value in words.items()):
            return got


def closed(socket):
    """The code and the reason that it is closed with."""
    with pytest.raises(ConnectionClosed) as error:
        while True:
            socket.recv(timeout=MAX_WAIT_S)
    return error.value.rcvd.code, error.value.rcvd.reason


def test_the_page_is_anybody_s_and_says_nothing(server):
    with urllib.request.urlopen(f"http://127.0.0.1:{server.port}/view?x=1") as answer:
        assert answer.read() == Plain.html
        assert answer.headers["Content-Security-Policy"] == "default-src 'none'"
        assert answer.headers["Content-Type"] == "text/html; charset=utf-8"
    assert get(server, "/viewer")[0] == 426 and server.viewers.key not in str(LivePage.html)
    with serving() as without:
        assert get(without, "/view")[0] == 426


def test_a_page_that_shows_no_key_is_shown_nothing(server, show):
    key = server.viewers.key
    with contextlib.ExitStack() as opened:
        for first in (
            json.dumps({"key": key + "0"}), json.dumps({"key": ""}), json.dumps({"key": None}),
            json.dumps([key]), "[" * 200, json.dumps({"key": key}) + " " * 256, b"\x00", "\ud7ff",
        ):  # fmt: skip
            socket = opened.enter_context(connect(f"ws://127.0.0.1:{server.port}/view"))
            socket.send(first)
            assert closed(socket) == (4401, "that is not the key")
    assert show.num_drawn == 0 and server.lease.num_stops == 0
    with page(server) as socket:
        assert drawing(socket)["drawing"]["figures"]["driver"] == "nobody drives"


def test_a_page_that_says_nothing_is_let_go(show):
    with (
        serving(show=show, heartbeat_s=0.2) as server,
        connect(f"ws://127.0.0.1:{server.port}/view") as socket,
    ):
        assert closed(socket)[0] == 4401


def test_a_key_that_somebody_chose_is_the_page_s_too_and_is_not_shown(show):
    with serving(show=show, key=KEY) as server:
        assert server.page == f"http://127.0.0.1:{server.port}/view"
        with page(server, KEY) as socket:
            assert drawing(socket)["number"] > 0
    with serving(show=show) as server:
        assert re.fullmatch(rf"http://127.0.0.1:{server.port}/view#[\w-]{{22}}", server.page)


def test_pages_of_others_are_turned_away_and_no_page_drives(server):
    address = f"127.0.0.1:{server.port}"
    for origin in ("http://evil.example", f"http://{address}.evil.example", "null"):
        with pytest.raises(InvalidStatus, match="403"), page(server, origin=origin):
            pass
    with page(server, origin=f"http://{address}") as socket:
        drawing(socket)
    with pytest.raises(InvalidStatus, match="403"), connect(
        f"ws://{address}/", origin=f"http://{address}"
    ):  # fmt: skip
        pass


def test_a_slow_page_misses_drawings_which_are_counted_and_gets_the_newest(server, show):
    with page(server) as slow:
        first = json.loads(slow.recv(timeout=MAX_WAIT_S))
        with page(server) as quick:
            for _ in range(5):
                drawing(quick)
        with pytest.raises(TimeoutError):
            slow.recv(timeout=0.05)
        newest = show.num_drawn
        say(slow, shown=first["number"])
        second = json.loads(slow.recv(timeout=MAX_WAIT_S))
        assert second["number"] >= newest - 1, "the last one may be on its way"
        assert second["dropped"] == second["number"] - first["number"] - 1 >= 4
        one = client(server)
        assert one.infer({"ask": "status"})["drawings_dropped"] >= second["dropped"]
        leave(one)


def test_nothing_is_drawn_while_nobody_looks(server, show):
    with page(server) as socket:
        drawing(socket)
    until(lambda: server.viewers._draws.done())
    drawn, one = show.num_drawn, client(server)
    for number in range(20):
        one.infer(observation(number))
    status = one.infer({"ask": "status"})
    assert show.num_drawn == drawn and status["viewers"] == 0
    leave(one)
    with page(server) as socket:
        assert drawing(socket)["drawing"]["figures"]["episode"] == "1, step 20"


def test_a_drawing_that_takes_its_time_keeps_nobody_waiting_and_a_failure_is_told(show):
    go, inside, seen = threading.Event(), threading.Event(), []

    def wait():
        inside.set()
        assert go.wait(MAX_WAIT_S)
        if not seen:
            raise ValueError("no ink")

    show.before = wait
    with serving(show=show, complain=seen.append) as server, page(server) as socket:
        assert inside.wait(MAX_WAIT_S)
        one = client(server)
        assert [one.infer(observation(n))["step"] for n in range(5)] == [0, 1, 2, 3, 4]
        assert get(server, "/healthz")[0] == 200
        go.set()
        assert drawing(socket)["number"] == 1
        assert [str(error) for error in seen] == ["no ink"]
        leave(one)


def test_a_stop_ends_the_driver_s_connection_with_its_reason_and_nobody_drives(server):
    driver, other = client(server), client(server)
    driver.infer(observation())
    with page(server) as socket:
        drawing(socket)
        say(socket, stop=True)
        stop = [1, "an operator at 127.0.0.1 pressed stop"]
        assert drawing(socket, stop=stop)["drawing"]["figures"]["driver"] == "nobody drives"
        with pytest.raises(ConnectionClosed, match="4001 .* an operator at 127.0.0.1 pressed stop"):
            driver.infer(observation())
        words = told(other, observation(request_id=1))
        assert words.startswith("an operator at 127.0.0.1 pressed stop: the robot has to stand")
        assert words.endswith("(request_id 1)")
        newcomer = client(server)
        assert "nobody drives until an operator" in told(newcomer, observation())
        say(socket, stop=True)
        status = other.infer({"ask": "status"})
        assert (status["stops"], status["stopped"], status["viewers"]) == (1, stop[1], 1)
        assert status["refused"]["stopped"] == 2 and status["refused"]["unready"] == 0
        assert get(server, "/readyz") == (503, "an operator at 127.0.0.1 pressed stop\n")
    leave(other)
    leave(newcomer)


def test_a_stop_comes_before_the_answer_that_is_being_computed():
    policy, inside, go = Policy(), threading.Event(), threading.Event()

    def wait():
        inside.set()
        assert go.wait(10 * MAX_WAIT_S)

    policy.before_act = wait
    long = {"answer_s": 10 * MAX_WAIT_S, "lease_s": 10 * MAX_WAIT_S}
    with serving(policy, show=Plain(), **long) as server, page(server) as socket:
        driver = client(server)
        driver._ws.send(packed(observation(request_id=7)))
        assert inside.wait(MAX_WAIT_S)
        say(socket, stop=True)
        words = driver._ws.recv(timeout=MAX_WAIT_S)
        assert words == (
            "an operator at 127.0.0.1 pressed stop: the robot has to stand (request_id 7)"
        )
        assert closed(driver._ws)[0] == 4001
        assert not go.is_set() and server.refused["stopped"] == 1
        go.set()


def test_nobody_who_was_connected_drives_when_a_stop_is_taken_back(server):
    driver, waiting = client(server), client(server)
    driver.infer(observation(1))
    with page(server) as socket, page(server) as stale:
        say(socket, stop=True)
        drawing(socket, stop=[1, "an operator at 127.0.0.1 pressed stop"])
        for number in (0, 2, True, "1", None):
            say(socket, release=number)
        until(lambda: "has to stand" in told(waiting, observation(2)))
        assert server.lease.why_stopped
        say(socket, release=1)
        drawing(socket, stop=None)
        assert "while this client was connected: connect again" in told(waiting, observation(2))
        again = client(server)
        answer = again.infer(observation(3))
        assert (answer["step"], answer["episode"]) == (0, 2)
        say(socket, stop=True)
        drawing(socket, stop=[2, "an operator at 127.0.0.1 pressed stop"])
        say(stale, release=1)  # it has not heard of the second one
        say(stale, shown=0)
        drawing(stale, stop=[2, "an operator at 127.0.0.1 pressed stop"])
        assert server.lease.num_stops == 2 and server.lease.why_stopped
    leave(waiting)


def test_a_stop_where_nobody_drives_is_a_stop(server):
    with page(server) as socket:
        say(socket, stop=True)
        drawing(socket, stop=[1, "an operator at 127.0.0.1 pressed stop"])
    one = client(server)
    assert "has to stand" in told(one, observation())
    leave(one)


@pytest.mark.parametrize("words", [{"stop": 1}, {"stop": "true"}, {"stop": False}, {"stop": None}])
def test_what_is_no_stop_stops_nothing(words, server):
    one = client(server)
    one.infer(observation())
    with page(server) as socket:
        say(socket, **words)
        socket.send(b"\x00" * 1000)
        socket.send("[" * 500)
        drawing(socket)
        drawing(socket)
    assert one.infer(observation())["step"] == 1 and server.lease.num_stops == 0
    leave(one)


def test_pages_are_counted_apart_from_clients(show):
    with serving(show=show, max_clients=1) as server, contextlib.ExitStack() as many:
        sockets = [many.enter_context(page(server)) for _ in range(MAX_VIEWERS)]
        with pytest.raises(InvalidStatus, match="503"), page(server):
            pass
        one = client(server)
        assert one.infer({"ask": "status"})["clients"] == 1
        assert drawing(sockets[-1])["number"] > 0
        leave(one)


def test_pages_are_told_that_the_server_closes(show):
    with contextlib.ExitStack() as opened:
        with serving(show=show) as server:
            socket = opened.enter_context(page(server))
            drawing(socket)
        assert closed(socket) == (1001, "the server is closing")


def test_a_policy_that_still_loads_is_shown_as_such(show):
    go = threading.Event()

    @contextlib.contextmanager
    def own():
        assert go.wait(MAX_WAIT_S)
        yield NOBODY

    with serving(show=show, own=own, wait=False, ends=False) as server:
        until(lambda: server.port != 0)
        with page(server) as socket:
            assert drawing(socket)["drawing"]["figures"] == {"state": "loading"}
    go.set()


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    """For 127.0.0.1, signed by itself."""
    if shutil.which("openssl") is None:
        pytest.skip("no openssl here")
    folder = tmp_path_factory.mktemp("tls")
    cert, key = folder / "cert.pem", folder / "key.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1",
         "-nodes", "-days", "2", "-subj", "/CN=robot", "-addext", "subjectAltName=IP:127.0.0.1",
         "-keyout", key, "-out", cert],
        check=True, capture_output=True,
    )  # fmt: skip
    return cert, key


def test_with_a_certificate_it_speaks_tls_and_nothing_else(certificate, show, monkeypatch):
    cert, key = certificate
    with serving(show=show, cert=cert, cert_key=key, key=KEY) as server:
        assert server.address == f"wss://127.0.0.1:{server.port}"
        assert server.page == f"https://127.0.0.1:{server.port}/view"
        with strangers.connected(server.port, handshake=False) as plain:
            plain.sendall(strangers.HANDSHAKE)
            assert not plain.recv(4096).startswith(b"HTTP")
        with pytest.raises(ssl.SSLCertVerificationError, match="self-signed"):
            WebsocketClientPolicy("wss://127.0.0.1", server.port, api_key=KEY)
        monkeypatch.setenv("SSL_CERT_FILE", str(cert))
        one = WebsocketClientPolicy("wss://127.0.0.1", server.port, api_key=KEY)
        np.testing.assert_array_equal(one.infer(observation(5))["actions"][0], [0, 5, 5])
        leave(one)


def test_a_certificate_and_its_key_are_looked_at_before_anything_is_loaded(certificate, tmp_path):
    cert, key = certificate
    with pytest.raises(ValueError, match="belong together: give both"):
        ServeConfig(cert=cert)
    swapped = "are no certificate and its private key in PEM"
    with pytest.raises(ValueError, match=swapped), serving(cert=key, cert_key=cert):
        pass
    missing = tmp_path / "none.pem"
    with pytest.raises(FileNotFoundError, match="none.pem"), serving(cert=cert, cert_key=missing):
        pass
    locked = tmp_path / "locked.pem"
    subprocess.run(
        ["openssl", "pkey", "-in", key, "-aes256", "-passout", "pass:secret", "-out", locked],
        check=True, capture_output=True,
    )  # fmt: skip
    password = "without a password"
    with pytest.raises(ValueError, match=password), serving(cert=cert, cert_key=locked):
        pass


def test_the_lease_is_nobody_s_after_a_stop_and_the_driver_s_end_changes_nothing(server):
    driver = client(server)
    driver.infer(observation())
    with page(server) as socket:
        say(socket, stop=True)
        drawing(socket, stop=[1, "an operator at 127.0.0.1 pressed stop"])
        leave(driver)
        looker = client(server)
        until_nobody_drives(looker)
        assert looker.infer({"ask": "status"})["stops"] == 1
        leave(looker)


def test_a_lease_that_was_stopped_is_nobody_s_until_that_stop_is_taken_back():
    lease = Lease(10.0, FakeClock())
    assert lease.use(3) == 1
    assert lease.stop("pressed") == 3 and lease.holder is None
    assert lease.stop("pressed again") is None
    assert (lease.num_stops, lease.why_stopped) == (1, "pressed")
    for client_number in (3, 4):
        with pytest.raises(StopError, match="pressed: the robot has to stand"):
            lease.use(client_number)
    assert not lease.release(0, 5) and not lease.release(2, 5) and lease.release(1, 5)
    assert not lease.release(1, 5), "there is nothing to take back any more"
    with pytest.raises(LeaseError, match="connect again"):
        lease.use(4)
    assert lease.use(5) == 2
