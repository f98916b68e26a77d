"""The page with the stop button, as its reader has it: in headless Chromium, over real sockets."""

import base64
import gc
import io
import json
import threading
import time
import urllib.request

import numpy as np
import pytest
from PIL import Image
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from runtime.control.clock import MonotonicClock
from runtime.control.guard import Stopped
from runtime.control.loop import LoopConfig, run_episode
from runtime.control.server.lookout import on_page
from runtime.control.sight import EpisodeScene, Figure, Sight
from runtime.pages.live.page import LivePage
from tests import pages
from tests.chromium import browser
from tests.runtime.stand_ins.pondering import PlacedRobot, PonderingPolicy
from tests.runtime.stand_ins.served import MAX_WAIT_S, client, graph, leave, observation, serving

KEY = "0123456789abcdef0123"
LOOKS = "document.querySelector('#pictures img').complete && "
LOOKS += "document.querySelector('#pictures img').naturalWidth"


@pytest.fixture(scope="module")
def open_tab(tmp_path_factory):
    with browser(tmp_path_factory.mktemp("chromium")) as tab:
        yield tab


@pytest.fixture
def tab(open_tab):
    """Nothing in it may have gone wrong, or been forbidden."""
    tab = open_tab()
    yield tab
    assert tab.complaints == []


@pytest.fixture
def server():
    with serving(show=LivePage()) as server:
        yield server


def is_live(tab):
    return tab.text("state").startswith("live, drawing ")


def figures(tab):
    told = tab.evaluate(
        "[...document.querySelectorAll('#figures dt')]"
        ".map((dt) => [dt.innerText, dt.nextSibling.innerText])"
    )
    return dict(told)


def test_an_operator_sees_what_is_served_and_stops_it(server, tab):
    tab.open(server.page)
    tab.until(lambda: is_live(tab))
    assert server.viewers.key not in tab.evaluate("location.href + document.body.outerHTML")
    assert not tab.evaluate("document.getElementById('stop').disabled")
    driver = client(server)
    for number in range(4):
        driver.infer(observation(200 + number, prompt="touch <b id=x>this</b>"))
    tab.until(lambda: figures(tab).get("episode") == "1, step 4")
    assert figures(tab)["instruction"] == "touch <b id=x>this</b>"
    assert tab.evaluate("document.getElementById('x')") is None
    tab.until(lambda: tab.evaluate(LOOKS) == 6)
    assert tab.evaluate("document.querySelectorAll('#plot polyline').length") == 3
    assert tab.evaluate("document.querySelector('#plot svg').getBoundingClientRect().width") > 300
    tab.click("stop")
    tab.until(lambda: tab.text("why") == "STOPPED: an operator at 127.0.0.1 pressed stop")
    with pytest.raises(ConnectionClosed, match="4001"):
        driver.infer(observation())
    tab.until(lambda: tab.text("stop") == "STOPPED")
    assert tab.evaluate("document.getElementById('stop').disabled")
    tab.click("release")
    tab.until(lambda: tab.text("why") == "")
    again = client(server)
    assert again.infer(observation())["episode"] == 2
    leave(again)


def test_who_has_the_key_types_it_once_and_others_see_nothing(tab):
    with serving(show=LivePage(), key=KEY) as server:
        tab.open(server.page)
        tab.until(lambda: tab.text("state") == "a key is needed")
        tab.evaluate("document.getElementById('key').focus()")
        tab.type("something else here")
        tab.until(lambda: tab.text("state") == "that is not the key")
        assert tab.text("figures") == "" and tab.text("shown") == ""
        tab.type(KEY)
        tab.until(lambda: is_live(tab))
        tab.open(server.page)
        tab.until(lambda: is_live(tab))
        assert KEY not in tab.evaluate("location.href + document.body.outerHTML")


def test_a_page_that_hears_nothing_says_that_it_is_old_and_goes_on_later(server, tab):
    blocked, go = threading.Event(), threading.Event()
    tab.open(server.page)
    tab.until(lambda: is_live(tab))
    draw = server.viewers._show.draw

    def wait(sight):
        blocked.set()
        assert go.wait(MAX_WAIT_S)
        return draw(sight)

    server.viewers._show.draw = wait
    assert blocked.wait(MAX_WAIT_S)
    tab.until(lambda: "the server says nothing: this is" in tab.text("lost"))
    assert tab.evaluate("document.body.className") == "old"
    go.set()
    tab.until(lambda: tab.text("lost") == "")
    assert tab.evaluate("document.body.className") == ""


def test_a_page_whose_server_ends_says_so_and_cannot_stop_anything(tab):
    with serving(show=LivePage()) as server:
        tab.open(server.page)
        tab.until(lambda: is_live(tab))
    tab.until(lambda: "Stop the robot at the robot." in tab.text("lost"))
    assert tab.evaluate("document.getElementById('stop').disabled")
    tab.complaints.clear()  # it tries again, and its console says so


def test_a_loop_of_this_process_is_shown_and_stopped(tab):
    scene, robot, over = EpisodeScene(graph()), PlacedRobot(4000), []

    def drive():
        try:
            run_episode(
                PonderingPolicy(), robot, LoopConfig(rate_hz=50, max_steps=4000),
                clock=MonotonicClock(), watch=scene.begin("episode", robot.limits.names),
            )  # fmt: skip
        except Stopped as error:
            over.append(str(error))

    with on_page(scene, LivePage(), 0, complain=over.append) as address:
        tab.open(address)
        tab.until(lambda: tab.text("title") == "no episode yet")
        loop = threading.Thread(target=drive)
        loop.start()
        tab.until(lambda: "of 50 Hz" in figures(tab).get("rate", ""))
        tab.until(lambda: tab.evaluate(LOOKS) == 1)
        tab.click("stop")
        loop.join(MAX_WAIT_S)
        assert over and "operator at 127.0.0.1 pressed stop; it stands and holds" in over[0]
        assert robot.calls[-1] == "hold" and not robot.done
        tab.until(lambda: tab.text("stop") == "STOPPED")
        assert tab.text("release") == "", "a run that was stopped is over"
    tab.until(lambda: "the run has ended" in tab.text("lost"))
    tab.complaints.clear()  # it tries again


def test_the_page_keeps_what_all_pages_promise_but_for_its_script():
    page = pages.Page(LivePage.html.decode("ascii"))
    assert pages.broken_promises(page) == [
        "link runs or loads something",  # an icon that is none, so that nobody asks for one
        "script runs or loads something",
    ]
    assert ("link", {"rel": "icon", "href": "data:,"}) in page.attributes
    assert [values for tag, values in page.attributes if tag == "script"] == [{}]


def test_a_browser_is_told_to_run_the_page_s_own_script_and_nothing_else(server):
    with urllib.request.urlopen(f"http://127.0.0.1:{server.port}/view") as answer:
        headers = answer.headers
    rules = dict(rule.split(" ", 1) for rule in headers["Content-Security-Policy"].split("; "))
    assert rules["default-src"] == rules["frame-ancestors"] == rules["base-uri"] == "'none'"
    assert rules["script-src"].startswith("'sha256-") and " " not in rules["script-src"]
    assert "unsafe" not in headers["Content-Security-Policy"]
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Cache-Control"] == "no-store" and headers["Referrer-Policy"] == "no-referrer"


def test_a_picture_is_sent_small_and_looks_the_same():
    ramp_HW = np.linspace(0, 255, 640)[None, :].repeat(480, 0)
    picture = np.stack([ramp_HW, ramp_HW[:, ::-1], 0 * ramp_HW], 2).astype(np.uint8)
    shown = Sight(
        title="t", figures=[Figure("a", "b")], stages={}, pictures={"frame": picture}, actions={}
    )
    told = json.loads(LivePage().draw(shown))
    head, data = told["pictures"]["frame"].split(",")
    assert head == "data:image/jpeg;base64" and len(data) < 20_000
    small = np.asarray(Image.open(io.BytesIO(base64.b64decode(data))), float)
    assert small.shape == (240, 320, 3)
    halved = picture.reshape(240, 2, 320, 2, 3).mean((1, 3))
    # JPEG at quality 80 rounds the coefficients of a ramp by a few grey levels.
    assert np.abs(small - halved).mean() < 4
    assert told["plot"] == "" and told["stop"] is None


def test_looking_on_leaves_nothing_for_the_garbage_collector():
    """It is off while a loop drives: what is left behind for it would fill the memory."""
    with on_page(EpisodeScene(graph()), LivePage(), 0, complain=lambda error: None) as address:
        host, key = address.removeprefix("http://").split("/view#")

        def look(times):
            with connect(f"ws://{host}/view") as socket:
                socket.send(json.dumps({"key": key}))
                for _ in range(times):
                    number = json.loads(socket.recv(timeout=MAX_WAIT_S))["number"]
                    socket.send(json.dumps({"shown": number}))

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("runtime.control.server.viewers.PERIOD_S", 0.0)
            look(3)
            gc.collect()
            gc.disable()
            try:
                left = []
                for times in (2, 30):
                    look(times)
                    time.sleep(0.1)
                    left.append(gc.collect())
            finally:
                gc.enable()
    # Of a connection there is a handful, however much it was shown.
    assert left[1] <= left[0] + 20


def test_a_port_that_is_taken_says_so(server):
    words = f"127.0.0.1:{server.port}: cannot be listened at"
    again = on_page(EpisodeScene(graph()), LivePage(), server.port, complain=print)
    with pytest.raises(ValueError, match=words), again:
        pass
