"""Who watches over a robot hears of good ticks and of nothing else. Oracle: a real datagram socket,
and libsystemd where it is installed."""

import contextlib
import ctypes
import gc
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

import models.demo
from runtime.control.clock import MonotonicClock, VirtualClock
from runtime.control.delay import Delay
from runtime.control.guard import Stopped
from runtime.control.heartbeat import NUM_KEPT, Heartbeat
from runtime.control.loop import LoopConfig, run_episode
from runtime.control.thinker import InlineThinker
from runtime.errors import EngineError, RobotError
from runtime.recordings.recording import load_recording
from runtime.robots.replay import ReplayedRobot
from tests.runtime.stand_ins.pondering import PlacedRobot, PonderingPolicy
from tests.runtime.stand_ins.systemd import MAX_WAIT_S, systemd
from tests.runtime.test_guard import Broken, Counting, turns
from tests.test_command_lines import as_nobody, drop_rights

ROOT = Path(__file__).parents[2]
EPISODE = Path(models.demo.__file__).parent / "episodes" / "touch-red-1.npz"


@pytest.fixture(autouse=True)
def nobody_watches(monkeypatch):
    """Whatever started the tests."""
    for name in ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "RUNTIME_DIRECTORY"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def watcher():
    """A watchdog so short that every beat is told."""
    with systemd() as watcher:
        yield watcher


@pytest.fixture
def clock():
    return VirtualClock()


@pytest.fixture
def heart(watcher, clock):
    """Every beat comes seconds after the last one."""
    seconds = itertools.count()
    return Heartbeat(watcher.environment, clock=lambda: next(seconds), now=lambda: 1000.0 + clock())


def drive(heart, policy=None, robot=None, **options):
    """Some steps in virtual time."""
    config = LoopConfig(**{"execute": 3, "max_steps": 10} | options.pop("config", {}))
    options = {"clock": VirtualClock()} | options
    policy, robot = policy or PonderingPolicy(), robot or PlacedRobot()
    return run_episode(policy, robot, config, heartbeat=heart, **options)


def feedings(told):
    return sum("WATCHDOG" in words for words in told)


def test_ready_comes_with_the_first_good_tick_and_once(policy, watcher, heart):
    before = []

    class Robot(ReplayedRobot):
        def send(self, action_A):
            before.extend(watcher.heard())
            return super().send(action_A)

    trace = drive(heart, policy, Robot(load_recording(EPISODE)), config={"max_steps": 7})
    told = before + watcher.heard()
    assert len(trace.steps) == len(told) == feedings(told) == 7
    assert ["READY" in words for words in told] == [True] + [False] * 6
    assert told[0]["READY"] == told[0]["WATCHDOG"] == "1"
    assert before == told[:6], "none before the first action, and one after each"
    words = "anchorvla4d: good ticks 7, last answer 0.0 ms, p50 0.0 ms, p99 0.0 ms"
    assert told[6]["STATUS"] == words, "in virtual time a thought takes none"


def test_the_file_tells_what_was_driven_and_how_it_did(policy, watcher):
    heart = Heartbeat(watcher.environment, clock=lambda: 0.0, now=iter([5.0, 6.25]).__next__)
    began = []

    def note(trace, stop):
        began.append(trace)

    class Once(ReplayedRobot):
        done = property(lambda self: bool(began[0].steps))

    robot = Once(load_recording(EPISODE))
    trace = drive(heart, policy, robot, watch=note, clock=MonotonicClock())
    took_ms = round(1e3 * trace.steps[0].act_s, 3)
    assert took_ms > 0 and watcher.status() == {
        "format": 1, "pid": os.getpid(), "policy": policy.bundle.manifest.policy, "started": 5.0,
        "ticks": 1, "last_ms": took_ms, "p50_ms": took_ms, "p99_ms": took_ms, "last_tick": 6.25,
        "stopped": None,
    }  # fmt: skip
    assert os.listdir(watcher.folder) == ["status.json"]


class Noted(Heartbeat):
    """Keeps what it was told."""

    def beat(self, ms=None):
        self.told = [*getattr(self, "told", []), ms]
        super().beat(ms)


def test_all_actions_that_are_sent_are_ticks_and_fresh_thoughts_say_what_they_took(watcher, clock):
    """A thought's answer comes after two steps, and the next takes a millisecond more of time."""
    policy, heart = PonderingPolicy(), Noted(watcher.environment)
    act = policy.act

    def think(observation, *, at):
        clock.now += 1e-3 * len(policy.calls)
        return act(observation, at=at)

    policy.act = think
    trace = drive(
        heart, policy, clock=clock, thinker=InlineThinker(policy, clock, 0.25),
        delay=Delay(median_s=0.25, largest_s=0.25, num_thoughts=1),
        config={"chunks": "async", "max_steps": 16},
    )  # fmt: skip
    assert 0 < len(trace.steps) < 16 and trace.num_waited
    took_ms = [None if step.act_s is None else round(1e3 * step.act_s) for step in trace.steps]
    assert [None if ms is None else round(ms) for ms in heart.told] == took_ms
    assert [ms for ms in took_ms if ms] == [1, 2, 3, 4, 5] and None in took_ms
    heart.end()
    assert watcher.status()["ticks"] == len(trace.steps)


def test_a_robot_without_an_answer_is_held_and_nobody_is_fed(watcher, heart, clock):
    policy = PonderingPolicy()
    trace = drive(
        heart, policy, clock=clock, thinker=InlineThinker(policy, clock, 1000.0),
        delay=Delay(median_s=0.1, largest_s=0.1, num_thoughts=1), config={"chunks": "async"},
    )  # fmt: skip
    assert trace.num_waited == 10
    assert watcher.heard() == [] and os.listdir(watcher.folder) == []


def test_a_guard_that_holds_or_slows_down_feeds_nobody(watcher, heart, tmp_path):
    trace = drive(heart, Broken(), Counting())
    assert len(trace.steps) == 3 and trace.num_held == 7
    assert feedings(watcher.heard()) == 3
    limits = turns(tmp_path, "simulated")
    trace = drive(heart, Broken(), Counting(), limits=limits)
    assert len(trace.steps) == 8, "five of them to slow down, of which the policy knows nothing"
    assert feedings(watcher.heard()) == 3
    assert watcher.status()["stopped"] is None


SERVICE = """
import sys, threading, time
import runtime
from tests.runtime.stand_ins.pondering import PlacedRobot, PonderingPolicy

class Policy(PonderingPolicy):
    def act(self, observation, *, at):
        if len(self.calls) == int(sys.argv[1]):
            threading.Event().wait()
        time.sleep(0.01)
        return super().act(observation, at=at)

config = runtime.LoopConfig(rate_hz=20, execute=4, max_steps=30, chunks=sys.argv[2])
for seed in range(2):
    runtime.run_episode(Policy(), PlacedRobot(), config, seed=seed)
"""
"""Of a user, who knows nothing of any watchdog; it hangs at a thought."""
WATCHDOG_S = 1.0


def test_a_loop_that_goes_on_is_fed_for_longer_than_the_watchdog_waits():
    """Two episodes of 1.5 s each."""
    with systemd(WATCHDOG_S) as watcher:
        command = [sys.executable, "-c", SERVICE, "1000", "sync"]
        told, code = watcher.keep(command, cwd=ROOT)
        assert code == 0
        assert sum("READY" in words for words in told) == 1
        assert feedings(told) > 2 * 1.5 / WATCHDOG_S
        assert [words.get("STOPPING") for words in told][-1] == "1"
        assert told[-1]["STATUS"] == "stopped: the process ended"
        status = watcher.status()
    assert status["ticks"] == 60 and status["stopped"]["why"] == "the process ended"
    assert status["last_tick"] <= status["stopped"]["at"]


@pytest.mark.parametrize(("chunks", "at"), [("sync", "6"), ("async", "20")])
def test_a_loop_that_hangs_is_ended_by_the_watchdog(chunks, at):
    """With `async` the loop itself goes on, and the robot stands."""
    with systemd(WATCHDOG_S) as watcher:
        command = [sys.executable, "-c", SERVICE, at, chunks]
        told, code = watcher.keep(command, cwd=ROOT)
        assert code == -signal.SIGABRT
        assert told[0]["READY"] == "1" and feedings(told) > 1
        assert "STOPPING" not in told[-1]
        assert watcher.status()["stopped"] is None


def test_what_stopped_it_is_told_and_stays_when_it_goes_on(watcher, heart, clock):
    stops = []
    with pytest.raises(Stopped):
        drive(heart, watch=lambda trace, stop: stops.append(stop("hands off")))
    (told,) = watcher.heard()
    assert told.keys() == {"STATUS"}, "it is not ready: nothing was sent"
    assert told["STATUS"].startswith("stopped: the guard stopped the robot: hands off; it stands")
    status = watcher.status()
    assert status["stopped"]["at"] == 1000.0 and status["ticks"] == 0 and status["p50_ms"] is None
    assert status["stopped"]["why"] == told["STATUS"].removeprefix("stopped: ")

    clock.now = 2.0
    drive(heart, config={"max_steps": 2})
    told = watcher.heard()
    assert told[0]["READY"] == "1" and told[-1]["STATUS"].startswith("a policy: good ticks 2,")
    assert watcher.status()["stopped"] == status["stopped"]
    assert watcher.status()["last_tick"] == 1002.0


def test_a_thought_that_fails_is_told_with_its_words(watcher, heart):
    with pytest.raises(EngineError):
        drive(heart, Broken(crashes=True), Counting())
    assert watcher.status()["stopped"]["why"] == "planted"
    heart.beat(1.0)
    watcher.heard()
    heart.end()
    (told,) = watcher.heard()
    assert told == {"STOPPING": "1", "STATUS": "stopped: the process ended"}
    assert watcher.status()["stopped"]["why"] == "the process ended", "it had gone on meanwhile"


def test_every_thing_that_ends_a_block_is_told_once_and_a_plain_exit_is_none(watcher, heart):
    for error, words in (
        (KeyboardInterrupt(), "interrupted"),
        (ValueError(), "ValueError"),
        (ValueError("two\n lines"), "two lines"),
        (ValueError("a path \udcff"), "a path \\udcff"),
        (RobotError("x" * 10_000), "x" * 500),
    ):
        with pytest.raises(type(error)), heart.watching(), heart.watching():
            raise error
        (told,) = watcher.heard()
        assert told == {"STATUS": f"stopped: {words}"}
        why = watcher.status()["stopped"]["why"]
        assert why.encode(errors="backslashreplace").decode() == words
    with pytest.raises(SystemExit), heart.watching():
        raise SystemExit(0)
    assert watcher.heard() == []


def test_the_first_good_tick_is_written_at_once_and_a_stop_that_comes_again_is_another(watcher):
    clock = VirtualClock()
    heart = Heartbeat(watcher.environment, clock=clock, now=clock)
    heart.stopped("the camera is gone")
    heart.beat(1.0)
    assert watcher.status()["ticks"] == 1, "within a second of the stop"
    clock.now = 0.5
    heart.stopped("the camera is gone")
    assert watcher.status()["stopped"] == {"at": 0.5, "why": "the camera is gone"}
    clock.now = 0.75
    heart.stopped("the camera is gone")
    assert watcher.status()["stopped"]["at"] == 0.5, "since then it has not gone on"


def test_whoever_reads_the_file_reads_one_state_of_it(watcher, heart):
    heart.beat(1.0)
    with (watcher.folder / "status.json").open() as before:
        for _ in range(3):
            heart.beat(2.0)
        read = before.read()
    assert json.loads(read)["ticks"] == 1 and watcher.status()["ticks"] == 4
    assert os.listdir(watcher.folder) == ["status.json"]


def test_no_disk_is_waited_for(watcher, heart, monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda number: pytest.fail("waits"))
    heart.beat(1.0)
    assert watcher.status()["ticks"] == 1


def test_the_end_is_told_once_and_nothing_after_it(watcher, heart):
    heart.beat(3.0)
    heart.stopped("the camera is gone")
    watcher.heard()
    heart.end()
    (told,) = watcher.heard()
    assert told == {"STOPPING": "1", "STATUS": "stopped: the camera is gone"}
    heart.end()
    heart.beat(4.0)
    heart.stopped("again")
    assert watcher.heard() == [] and not heart.is_on
    assert (watcher.status()["ticks"], watcher.status()["last_ms"]) == (1, 3.0)


def test_systemd_is_told_four_times_in_its_period_and_the_file_written_once_a_second(clock):
    """At 16 ticks a second, exact in binary."""
    with systemd(2.0) as watcher:
        heart = Heartbeat(watcher.environment, clock=clock)
        heard, written = [], []
        for tick in range(80):
            heart.beat(1.0)
            heard += [tick] * len(watcher.heard())
            if watcher.status()["ticks"] == tick + 1:
                written.append(tick)
            clock.now += 1 / 16
    assert heard == list(range(0, 80, 8)), "every 0.5 s"
    assert written == list(range(0, 80, 16)), "every second"


def test_with_a_patient_watchdog_it_is_told_once_a_second_and_without_one_too(clock):
    for watchdog_s, keys in ((60.0, {"WATCHDOG", "STATUS"}), (None, {"STATUS"})):
        with systemd(watchdog_s) as watcher:
            heart = Heartbeat(watcher.environment, clock=clock)
            heard = []
            for tick in range(24):
                heart.beat(1.0)
                heard += [(tick, words.keys()) for words in watcher.heard()]
                clock.now += 0.125
        assert heard == [(0, keys | {"READY"}), (8, keys), (16, keys)]


def test_a_queue_that_is_full_keeps_nobody_waiting_and_ready_is_told_later(watcher, heart):
    others = Heartbeat(watcher.environment, clock=VirtualClock())
    for _ in range(1000):  # a socket takes some ten
        others.stopped(f"{_}")
    heart.beat(1.0)
    assert not any("READY" in words for words in watcher.heard())
    heart.beat(1.0)
    (told,) = watcher.heard()
    assert told["READY"] == told["WATCHDOG"] == "1"


@pytest.mark.parametrize("count", [1, 2, 3, 100, NUM_KEPT, NUM_KEPT + 77])
def test_quantiles_are_those_of_numpy_over_the_last_answers(count, watcher, heart):
    took_ms = np.random.default_rng(count).exponential(20.0, count)
    for ms in took_ms:
        heart.beat(float(ms))
        heart.beat()
        watcher.heard()
    heart.beat()
    p50, p99 = np.percentile(took_ms[-512:], (50, 99))
    status = watcher.status()
    assert (status["p50_ms"], status["p99_ms"]) == (round(p50, 3), round(p99, 3))
    assert status["last_ms"] == round(float(took_ms[-1]), 3) and status["ticks"] == 2 * count + 1


def test_nothing_is_left_for_the_garbage_collector(watcher, heart):
    """It is off while a robot is driven."""
    gc.collect()
    gc.disable()
    try:
        for _ in range(20):
            heart.beat(1.0)
            watcher.heard()
        assert gc.collect() == 0
    finally:
        gc.enable()


class Untouched(Heartbeat):
    def beat(self, ms=None):
        raise AssertionError("nobody listens")


def test_where_nobody_listens_a_step_does_nothing_and_no_thread_is_there(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    threads = threading.active_count()
    heart = Untouched({"WATCHDOG_USEC": "1000000"})
    assert len(drive(heart).steps) == 10
    assert not heart.is_on and heart.check_s is None
    heart.ready(), heart.stopped("x"), heart.end()
    assert threading.active_count() == threads and os.listdir(tmp_path) == []


def test_no_thread_feeds(watcher, heart):
    threads = threading.active_count()
    heart.beat(1.0)
    assert threading.active_count() == threads
    watcher.heard()
    assert watcher.heard(0.2) == []


@pytest.mark.parametrize("is_abstract", [False, True])
def test_it_finds_the_socket_that_libsystemd_finds(is_abstract, monkeypatch):
    with systemd(is_abstract=is_abstract) as watcher:
        Heartbeat(watcher.environment).ready()
        assert watcher.heard()[0]["READY"] == "1"
        monkeypatch.setenv("NOTIFY_SOCKET", watcher.environment["NOTIFY_SOCKET"])
        assert libsystemd().sd_notify(0, b"READY=1\nSTATUS=by systemd") > 0
        assert watcher.heard() == [{"READY": "1", "STATUS": "by systemd"}]


PERIODS = ["", "3000000", "1", "0", "-1", "1.5", "x", "\u0663", "3e6", "9" * 5000]


@pytest.mark.parametrize("process", ["", "own", "1", "x"])
@pytest.mark.parametrize("period", PERIODS)
def test_it_heeds_the_watchdogs_that_libsystemd_heeds(period, process, monkeypatch, capsys):
    names = {"WATCHDOG_USEC": period, "WATCHDOG_PID": process.replace("own", str(os.getpid()))}
    for name, value in names.items():
        if value:
            monkeypatch.setenv(name, value)
    found = ctypes.c_uint64()
    heeded = libsystemd().sd_watchdog_enabled(0, ctypes.byref(found)) > 0
    watchdog_s = Heartbeat({**os.environ, "NOTIFY_SOCKET": "@x"}).watchdog_s
    assert watchdog_s == (found.value / 1e6 if heeded else None)
    is_wrong = process in ("", "own") and bool(period) and not heeded
    assert ("warning: WATCHDOG_USEC: microseconds are" in capsys.readouterr().err) == is_wrong


def libsystemd():
    try:
        return ctypes.CDLL("libsystemd.so.0")
    except OSError:
        pytest.skip("libsystemd.so.0 is not installed")


def warned(capsys, words):
    err = capsys.readouterr().err
    assert err.count("\n") == err.count("warning: ") == 1, err
    assert err.startswith("warning: ") and words in err


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("NOTIFY_SOCKET", "{}/nobody", "NOTIFY_SOCKET: {}/nobody: systemd is not told: "),
        ("NOTIFY_SOCKET", "@" + "x" * 200, "systemd is not told: "),
        ("NOTIFY_SOCKET", "vsock:2:1", "NOTIFY_SOCKET: vsock:2:1 is neither a path nor, behind @"),
        ("RUNTIME_DIRECTORY", "{}/file", "RUNTIME_DIRECTORY: {}/file/status.json: cannot be wr"),
        ("RUNTIME_DIRECTORY", "{}/mine", "there is a file already, and it is not a status of"),
        ("RUNTIME_DIRECTORY", "/proc/none:{}", "RUNTIME_DIRECTORY: /proc/none/status.json: can"),
    ],
)
def test_a_broken_place_is_one_warning_and_the_robot_goes_on(name, value, words, tmp_path, capsys):
    (tmp_path / "file").write_text("x")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "status.json").write_text("somebody's own")
    clock = VirtualClock()
    heart = Heartbeat({name: value.format(tmp_path), "WATCHDOG_USEC": "4"}, clock=clock)
    for _ in range(2):
        assert len(drive(heart, clock=clock).steps) == 10
    heart.end()
    warned(capsys, words.format(tmp_path))
    assert (tmp_path / "mine" / "status.json").read_text() == "somebody's own"


@pytest.mark.parametrize("is_closed", [True, False])
def test_a_warning_that_nobody_can_be_given_stops_no_robot_either(is_closed, monkeypatch):
    with contextlib.suppress(OSError), open("/dev/full", "w", buffering=1) as stream:
        if is_closed:
            stream.close()
        monkeypatch.setattr(sys, "stderr", stream)
        heart = Heartbeat({"RUNTIME_DIRECTORY": "/proc/none"}, clock=VirtualClock())
        assert len(drive(heart).steps) == 10
        monkeypatch.undo()


def test_a_folder_of_another_user_is_one_warning(capsys):
    with as_nobody() as folder:
        (folder / "closed").mkdir(mode=0o555)
        drop_rights()
        heart = Heartbeat({"RUNTIME_DIRECTORY": str(folder / "closed")}, clock=VirtualClock())
        heart.beat(1.0), heart.end()
        assert os.listdir(folder / "closed") == []
    warned(capsys, "permission denied")


def test_a_folder_that_goes_away_is_one_warning_and_the_rest_is_told(capsys, clock):
    with systemd() as watcher:
        heart = Heartbeat(watcher.environment, clock=clock)
        heart.beat(1.0)
        shutil.rmtree(watcher.folder)
        for _ in range(3):
            clock.now += 1.0
            heart.beat(1.0)
        assert feedings(watcher.heard()) == 4
        warned(capsys, "RUNTIME_DIRECTORY: ")
        watcher.folder.mkdir()
        heart.end()
        assert watcher.status()["ticks"] == 4


def command(*words):
    return [sys.executable, "-m", "runtime", *map(str, words)]


def test_anchorvla_run_is_watched_from_its_first_action_to_its_end(demo_bundle):
    words = ["run", demo_bundle, "--episodes", EPISODE, "--rate-hz", 100, "--max-steps", 30]
    with systemd() as watcher:
        told, code = watcher.keep(
            command(*words), patience_s=MAX_WAIT_S, cwd=ROOT, stdout=subprocess.DEVNULL
        )
        status = watcher.status()
    assert code == 0 and ["READY" in words for words in told] == [True] + [False] * 30
    assert told[-1] == {"STOPPING": "1", "STATUS": "stopped: the process ended"}
    assert (status["ticks"], feedings(told)) == (30, 30)
    assert status["policy"] == "anchorvla4d" and status["stopped"]["why"] == told[-1][
        "STATUS"
    ].removeprefix("stopped: ")
    assert status["started"] < status["last_tick"] <= status["stopped"]["at"] <= time.time()


@pytest.mark.parametrize("verb", ["run", "serve"])
def test_a_bundle_that_does_not_load_is_never_ready_and_the_file_says_why(verb, tmp_path):
    (tmp_path / "manifest.json").write_text("{}")
    with systemd() as watcher:
        words = [verb, tmp_path] + (["--episodes", EPISODE] if verb == "run" else [])
        told, code = watcher.keep(
            command(*words), patience_s=MAX_WAIT_S, cwd=ROOT, stderr=subprocess.DEVNULL
        )
        status = watcher.status()
    assert code == 3 and not any("READY" in words for words in told)
    assert str(tmp_path) in status["stopped"]["why"] and status["ticks"] == 0
    assert [*told[-1]] == ["STOPPING", "STATUS"]
