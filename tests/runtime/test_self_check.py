"""A policy that nobody asks checks itself, and no client's answer is changed or kept waiting by it.

Oracle: a second policy that never checks itself, to the bit; systemd's side on a real socket.
"""

import contextlib
import itertools
import signal
import threading
from dataclasses import replace

import numpy as np
import pytest
from openpi_client.websocket_client_policy import WebsocketClientPolicy

import runtime
from runtime.backends.onnxruntime import OnnxRuntimeBackend
from runtime.backends.parity import Parity
from runtime.control.heartbeat import Heartbeat
from runtime.control.server.contract import Request
from runtime.control.server.session import Session
from runtime.control.server.worker import Worker
from runtime.errors import EngineError, EpisodeError, ObservationError
from tests import families
from tests.fuzz_server import served
from tests.runtime.stand_ins.served import (
    MAX_WAIT_S,
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
)
from tests.runtime.stand_ins.systemd import systemd
from tests.runtime.test_declarations import FAMILIES, family
from tests.runtime.test_declarations import observation as seen_by
from tests.simulation.faults import Faults, FaultyBackend

STATE = np.array([0.0, 0.6, 0.2, 1.0], np.float32)


@pytest.fixture
def pair(demo_bundle):
    """Two policies of one bundle: one that is probed, and one that is not."""
    with runtime.load(demo_bundle) as one, runtime.load(demo_bundle) as other:
        yield one, other


@pytest.mark.parametrize("inputs", FAMILIES.values(), ids=FAMILIES)
def test_no_family_of_policies_notices_a_probe(tmp_path, inputs):
    """Rings, latches, what the operator gave and all that is asked for stay as they were."""
    path = family(tmp_path, inputs, every=2)
    with runtime.load(path) as probed, runtime.load(path) as plain:
        given = {n: v for n, v in families.golden_of(inputs, 7).items() if n in ("goal", "first")}
        one, other = (policy.start(seed=5, **given) for policy in (probed, plain))
        for number in range(8):
            if number % 4:
                assert probed.probe().passed
            if number % 4 == 2:
                probed.catch_up()
            seen = seen_by(inputs, number // 2)
            got, wanted = one.act(seen, at=number), other.act(seen, at=number)
            assert got.actions.tobytes() == wanted.actions.tobytes()
            assert got.leaves.keys() == wanted.leaves.keys()
            assert probed.probe().passed
            for leaf in plain.outputs:
                assert one.ask(leaf).tobytes() == other.ask(leaf).tobytes()
            assert (one.step, one.ended, other.step) == (number + 1, None, number + 1)
            assert one.stats.repeated_frames == other.stats.repeated_frames


def test_a_probe_judges_as_the_check_does(policy):
    verdict = policy.probe()
    assert verdict == policy.check()[-1] and 0 < verdict.error <= verdict.allowed
    assert policy.probe() == verdict


def test_a_probe_fails_where_the_actions_are_others_than_the_exporters(tmp_path, monkeypatch):
    exact, inputs = families.expected, FAMILIES["first frame"]
    monkeypatch.setattr(families, "expected", lambda values: exact(values) * np.float32(1.01))
    with runtime.load(family(tmp_path, inputs)) as policy:
        verdict = policy.probe()
    assert not verdict.passed and verdict.name == "actions"
    assert verdict.error == pytest.approx(0.01 / 1.01, rel=1e-3) and verdict.allowed == 1e-4


def test_a_probe_computes_every_stage_of_a_tick_anew(demo_bundle, monkeypatch, image):
    faults = Faults(monkeypatch)
    backend = lambda _: FaultyBackend(OnnxRuntimeBackend(), faults)  # noqa: E731
    with runtime.load(demo_bundle, backend=backend) as policy:
        graph = policy.graph
        needed = {graph.stages[i].name for i in graph.needed_for(graph.target)}
        assert len(needed) > 10 and policy.probe().passed
        for stage in graph.stages:
            if stage.name in needed and graph.stage_dependencies[stage.name]:
                faults.arm(stage.name, "before")
                with pytest.raises(EngineError, match="injected"):
                    policy.probe()
                assert policy.probe().passed


def test_after_catching_up_the_next_tick_is_a_warm_one(pair, image):
    ran = []
    for policy in pair:
        episode = policy.start(anchor=image(1), instruction="open the drawer")
        episode.act({"frame": image(2), "state": STATE})
        if policy is pair[0]:
            assert policy.probe().passed
            policy.catch_up()
        episode.act({"frame": image(3), "state": STATE})
        ran.append(set(episode.stats.last_s))
        assert policy.probe().passed
        episode.act({"frame": image(4), "state": STATE})
        assert len(episode.stats.last_s) > len(ran[-1]), "without it everything is computed"
    assert ran[0] == ran[1]


def test_a_probe_needs_no_episode_and_ends_none(pair, image):
    policy = pair[0]
    assert policy.probe().passed
    policy.catch_up()
    with policy.start(anchor=image(1), instruction="open the drawer") as episode:
        assert policy.probe().passed
        policy.catch_up()
        assert not any(episode.stats.num_runs.values()), "it has seen nothing"
        assert (episode.step, episode.ended) == (0, None)
        with pytest.raises(EpisodeError, match="act first"):
            episode.ask("actions")
    policy.close()
    with pytest.raises(EpisodeError, match="closed"):
        policy.probe()


@pytest.fixture
def heart():
    """Of a process whose every moment is one for a self-check."""
    with systemd() as watcher:
        yield Heartbeat(watcher.environment)


def restless(policy, heart, **options):
    """A session for which a second passes whenever it looks at its clock."""
    seconds = itertools.count()
    return Session(policy, 3, heart=heart, clock=lambda: float(next(seconds)), **options)


def story(image):
    """What clients ask for, one after the other; None is refused."""

    def ask(number, **more):
        return {"frame": image(number), "state": STATE, **more}

    yield 1, ask(1, instruction="touch the red marker"), {}
    yield 1, ask(2), {}
    yield 1, ask(2), {"outputs": ("anchor_similarity",)}
    yield 1, ask(3, instruction="open the drawer"), {"outputs": ("anchor_similarity",)}
    yield 1, ask(4), {"latch": ("anchor",)}
    yield 1, ask(5, anchor=image(50)), {}
    yield 1, {"frame": image(6)}, {}  # refused: it lacks the state
    yield 1, ask(6), {"outputs": ("anchor_similarity",)}
    yield 1, ask(7, instruction="push the puck"), {"reset": True, "seed": 40}
    yield 1, ask(8), {}
    yield 2, ask(9), {}  # refused: another client has to say what it wants
    yield 2, ask(9, instruction="open the drawer"), {}
    yield 2, ask(9), {}
    yield 2, ask(10), {}


def requests(image):
    for lease, values, more in story(image):
        yield Request(**{"values": values, "reset": False, "seed": None, "latch": (),
                         "outputs": ()} | more), lease  # fmt: skip


@pytest.mark.parametrize("is_driven", [False, True])
@pytest.mark.parametrize("pattern", [(1,), (2,), (0, 1, 2, 3), (5,)])
def test_no_answer_is_changed_by_self_checks_between(pattern, is_driven, pair, heart, image):
    one, other = restless(pair[0], heart), Session(pair[1], 3)
    idles = itertools.cycle(pattern)
    for request, lease in requests(image):
        for _ in range(next(idles)):
            assert one.idle(is_driven=is_driven) == 0.0
        assert other.idle(is_driven=is_driven) is None, "nobody listens"
        got, wanted = answered(one, request, lease), answered(other, request, lease)
        assert got == wanted
    assert one.status().keys() == other.status().keys()
    assert (one.num_ticks, one.num_episodes, one.seed) == (12, 3, 5)
    assert heart.num_ticks > 12


def answered(session, request, lease):
    """To the bit."""
    try:
        answer = session.act(request, lease)
    except ObservationError as error:
        return str(error)
    outputs = {name: value.tobytes() for name, value in answer.get("outputs", {}).items()}
    return answer["actions"].tobytes(), outputs, answer["episode"], answer["step"], answer["seed"]


def test_a_client_of_a_server_that_checks_itself_all_the_time_gets_the_same_bits(
    pair, heart, image
):
    """Over a socket, with self-checks between any two requests."""
    session = Session(pair[0], 5, heart=heart)
    own = lambda: contextlib.nullcontext(session)  # noqa: E731
    with serving(pair[0], own=own) as server:
        one = client(server)

        def ask(number, **more):
            before = heart.num_ticks
            until(lambda: heart.num_ticks > before + 1)
            return one.infer({"frame": image(number), "state": STATE.astype(float), **more})

        episode = pair[1].start(instruction="touch the red marker", seed=5)
        for number in range(12):
            say = {"prompt": "open the drawer"} if number == 6 else {}
            if number == 6:
                episode.say("open the drawer")
            first = {"prompt": "touch the red marker"} if number == 0 else {}
            answer = ask(number, **first, **say)
            wanted = episode.act({"frame": image(number), "state": STATE}).actions
            np.testing.assert_array_equal(answer["actions"], wanted)
            assert answer["step"] == number
        leave(one)


class Probed(Policy):
    """Keeps what it was asked to do; its probe is as good as it is told."""

    def __init__(self):
        super().__init__()
        self.calls, self.verdict = [], Parity("chunk", 1e-6, 1e-4)
        self.in_probe = lambda: None
        self.before_act = lambda: self.calls.append("act")

    def probe(self):
        self.calls.append("probe")
        self.in_probe()
        return self.verdict

    def catch_up(self):
        self.calls.append("catch up")


def request(frame=1, **more):
    values = {"frame": np.full((8, 6, 3), frame, np.uint8), "state": np.ones(2), **more}
    values = {"instruction": "go"} | values
    return Request(values=values, reset=False, seed=None, latch=(), outputs=())


def test_what_was_kept_is_made_up_for_where_somebody_drives_on_and_only_then(heart):
    policy = Probed()
    session = restless(policy, heart)
    for is_driven in (False, True, True):
        session.idle(is_driven=is_driven), session.idle(is_driven=is_driven)
    assert policy.calls == ["probe", "probe", "catch up", "probe", "catch up"]
    session.idle(is_driven=True)
    session.act(request(), 1)
    session.idle(is_driven=True)
    assert policy.calls[5:] == ["probe", "act", "probe"], "whoever acts has made up for it"


@pytest.mark.parametrize(
    ("environment", "period_s"),
    [
        ({"NOTIFY_SOCKET": "@x", "WATCHDOG_USEC": "20000000"}, 5.0),
        ({"NOTIFY_SOCKET": "@x", "WATCHDOG_USEC": "2000000", "RUNTIME_DIRECTORY": "/x"}, 0.5),
        ({"RUNTIME_DIRECTORY": "/x"}, 5.0),
        ({"NOTIFY_SOCKET": "@x"}, None),
        ({"NOTIFY_SOCKET": "@x", "WATCHDOG_USEC": "2000000", "WATCHDOG_PID": "1"}, None),
        ({}, None),
    ],
)
def test_it_checks_itself_four_times_in_a_watchdogs_period_where_anybody_waits_for_it(
    environment, period_s, monkeypatch
):
    monkeypatch.setattr(Heartbeat, "beat", lambda self, ms: None)  # nobody is there
    policy, clock = Probed(), FakeClock()
    session = Session(policy, 0, heart=Heartbeat(environment), clock=clock)
    if period_s is None:
        assert session.idle(is_driven=True) is None and policy.calls == []
        return
    assert session.idle(is_driven=False) == 0.0 == session.idle(is_driven=False)
    assert policy.calls == ["probe"], "the first one at once"
    assert session.idle(is_driven=False) == period_s
    clock.now = 0.75 * period_s
    assert session.idle(is_driven=False) == 0.25 * period_s
    session.act(request(), 1)
    assert session.idle(is_driven=False) == period_s, "whoever asks has checked it"
    clock.now += period_s
    assert policy.calls == ["probe", "act"] and session.idle(is_driven=False) == 0.0
    assert policy.calls == ["probe", "act", "probe"]


def test_a_self_check_that_fails_feeds_nobody_and_says_why():
    with systemd() as watcher:
        policy, heard = Probed(), []
        session = restless(policy, Heartbeat(watcher.environment), complain=heard.append)
        policy.verdict = Parity("chunk", 0.25, 1e-4)
        session.idle(is_driven=False)
        words = "chunk of the golden observation: off by 2.5e-01, allowed is 1e-04; run: "
        assert watcher.heard() == [{"STATUS": f"stopped: self-check: {words}anchorvla check"}]
        assert watcher.status()["stopped"]["why"] == f"self-check: {words}anchorvla check"
        assert watcher.status()["ticks"] == 0
        assert [type(error) for error in heard] == [EngineError]
        policy.verdict = Parity("chunk", 1e-6, 1e-4)
        session.idle(is_driven=False), session.idle(is_driven=False)
        (now,) = watcher.heard()
        assert now["READY"] == now["WATCHDOG"] == "1" and "stopped" not in now["STATUS"]
        assert watcher.status()["ticks"] == 1

        def fail():
            raise EngineError("out of memory")

        policy.in_probe = fail
        session.idle(is_driven=False), session.idle(is_driven=False)
        assert watcher.status()["stopped"]["why"] == "self-check: out of memory"
        assert len(heard) == 2


def test_an_answer_feeds_and_a_failure_or_a_refusal_does_not():
    with systemd() as watcher:
        policy, heart = Probed(), Heartbeat(watcher.environment)
        session = Session(policy, 0, heart=heart)
        session.act(request(), 1)
        (first,) = watcher.heard()
        assert first["WATCHDOG"] == "1" and watcher.status()["last_ms"] == round(
            session.last_infer_ms, 3
        )
        with pytest.raises(ObservationError):
            session.act(request(state=np.array([np.nan, 0])), 1)
        assert watcher.heard() == [] and watcher.status()["stopped"] is None

        def fail():
            raise EngineError("the GPU fell off")

        policy.before_act = fail
        with pytest.raises(EngineError):
            session.act(request(), 1)
        assert watcher.heard() == [{"STATUS": "stopped: the GPU fell off"}]
        assert watcher.status()["stopped"]["why"] == "the GPU fell off"


@pytest.fixture
def log():
    return []


def test_nothing_idle_begins_while_a_job_waits(log):
    first, go = threading.Event(), threading.Event()

    def hold(owned):
        first.set()
        assert go.wait(MAX_WAIT_S)
        log.append("held")

    def idle(owned):
        log.append("idle")

    worker = Worker(lambda: contextlib.nullcontext("it"), idle=idle)
    worker.start()
    jobs = [worker.submit(hold)]
    assert first.wait(MAX_WAIT_S)
    jobs += [worker.submit(lambda owned, n=n: log.append(n)) for n in range(20)]
    before = len(log)
    go.set()
    assert [job.result(MAX_WAIT_S) for job in jobs][-1] is None
    assert worker.stop(MAX_WAIT_S)
    assert log[before:][:21] == ["held", *range(20)]
    assert log[:before] == ["idle"] * before and before <= 1
    assert log[before + 21 :] in ([], ["idle"]), "once, and not again before the next job"


def test_what_is_idle_comes_again_after_the_seconds_it_wants_and_ends_with_the_worker(log):
    waits, enough = iter([0.0, 0.001, 0.0]), threading.Event()

    def idle(owned):
        log.append(owned)
        wait_s = next(waits, None)
        if wait_s is None:
            enough.set()
        return wait_s

    worker = Worker(lambda: contextlib.nullcontext("it"), idle=idle)
    worker.start()
    assert enough.wait(MAX_WAIT_S)
    assert worker.submit(lambda owned: owned).result(MAX_WAIT_S) == "it"
    assert worker.stop(MAX_WAIT_S) and log[:4] == ["it"] * 4
    assert len(log) in (4, 5)


def test_a_worker_is_busy_with_what_is_idle_as_long_as_that_takes():
    clock, inside, go = FakeClock(), threading.Event(), threading.Event()

    def idle(owned):
        inside.set()
        assert go.wait(MAX_WAIT_S)

    worker = Worker(lambda: contextlib.nullcontext("it"), clock, idle)
    worker.start()
    assert inside.wait(MAX_WAIT_S)
    clock.now = 3.0
    assert worker.busy_s == 3.0
    go.set()
    until(lambda: worker.busy_s == 0.0)
    assert worker.stop(MAX_WAIT_S)


@pytest.fixture
def probing(heart):
    """A server in a self-check that lasts until it is let go."""
    policy, clock = Probed(), FakeClock()
    inside, go = threading.Event(), threading.Event()

    def wait():
        inside.set()
        assert go.wait(MAX_WAIT_S)

    policy.in_probe = wait
    session = Session(policy, 0, heart=heart)
    own = lambda: contextlib.nullcontext(session)  # noqa: E731
    with serving(policy, own=own, clock=clock) as server:
        assert inside.wait(MAX_WAIT_S)
        yield server, policy, clock, go
        go.set()


def test_a_request_that_comes_in_a_self_check_is_answered_right_after_it(probing):
    server, policy, _, go = probing
    one = client(server)
    one._ws.send(packed(observation(4)))
    until(lambda: not server.worker._jobs.empty())
    assert get(server, "/readyz") == (200, "ready\n")
    go.set()
    assert isinstance(one._ws.recv(), bytes), "a refusal is a text"
    assert policy.calls[:2] == ["probe", "act"], "and nothing is made up for before"
    leave(one)


def test_a_self_check_after_a_late_answer_is_not_taken_for_it(heart):
    """Then a request waits for it, and is not refused as while the late one is computed."""
    policy, acting, probing, go = Probed(), threading.Event(), threading.Event(), threading.Event()
    session = Session(policy, 0, heart=heart)
    own = lambda: contextlib.nullcontext(session)  # noqa: E731
    with serving(policy, own=own, answer_s=0.2, lease_s=30.0) as server:
        policy.before_act = lambda: acting.wait(MAX_WAIT_S)
        late = client(server)
        assert "no answer within 0.2 s" in told(late, observation())
        server.config = replace(server.config, answer_s=30.0)
        assert get(server, "/readyz")[0] == 503
        policy.in_probe = lambda: (probing.set(), go.wait(MAX_WAIT_S))
        acting.set()
        assert probing.wait(MAX_WAIT_S)
        assert get(server, "/readyz") == (200, "ready\n")
        one = client(server)
        one._ws.send(packed(observation()))
        until(lambda: not server.worker._jobs.empty())
        go.set()
        assert isinstance(one._ws.recv(), bytes), "a refusal is a text"
        leave(one)


def test_a_self_check_that_hangs_is_told_to_whoever_asks(probing):
    server, _, clock, go = probing
    clock.now = 10.5
    assert get(server, "/readyz") == (503, "the policy has not answered for 10.5 s\n")
    one = client(server)
    assert "nothing is answered now" in told(one, observation())
    go.set()
    until(lambda: get(server, "/readyz")[0] == 200)
    assert one.infer(observation(2))["step"] == 0
    leave(one)


def test_a_server_makes_up_for_its_checks_as_long_as_a_client_drives(heart):
    policy = Probed()
    session = Session(policy, 0, heart=heart)

    def calls_of_three_checks():
        before = len(policy.calls)
        until(lambda: policy.calls[before:].count("probe") > 3)
        return policy.calls[before:]

    with serving(policy, own=lambda: contextlib.nullcontext(session)) as server:
        assert set(calls_of_three_checks()) == {"probe"}
        one = client(server)
        one.infer(observation())
        assert calls_of_three_checks().count("catch up") > 1
        leave(one)
        until(lambda: server.lease.holder is None)
        until(lambda: "catch up" not in calls_of_three_checks())


def test_an_operators_stop_is_told(heart):
    session = Session(Probed(), 0, heart=heart)
    with serving(own=lambda: contextlib.nullcontext(session)) as server:
        server.stop("operator's stop")
        assert heart.contents()["stopped"]["why"] == "operator's stop"


WATCHDOG_S = 2.0


def test_a_served_policy_without_clients_is_fed_and_says_when_it_is_told_to_stop(
    demo_bundle, monkeypatch
):
    """For three of the watchdog's periods; a client is answered in between."""
    with systemd(WATCHDOG_S) as watcher:
        for name, value in watcher.environment.items():
            monkeypatch.setenv(name, value)
        heard = []
        with served(demo_bundle) as (process, port):
            while len(heard) < 12:
                new = watcher.heard(WATCHDOG_S)
                assert new, "silent for a whole period"
                heard += new
            alone = watcher.status()
            one = WebsocketClientPolicy("127.0.0.1", port)
            seen = {"frame": np.random.default_rng(0).integers(0, 255, (112, 112, 3), np.uint8)}
            one.infer({**seen, "state": STATE.astype(float), "prompt": "open the drawer"})
            one._ws.close()
            until(lambda: watcher.heard(WATCHDOG_S))
            process.send_signal(signal.SIGTERM)
            out, err = process.communicate(timeout=60)
        heard += watcher.heard()
        status = watcher.status()
    assert (process.returncode, err) == (0, "")
    assert out == "stopped after 1 episodes, 1 ticks; refused: nothing\n"
    assert [words.get("READY") for words in heard].count("1") == 1 and "READY" in heard[0]
    assert sum("WATCHDOG" in words for words in heard) >= 11
    assert heard[-1] == {"STOPPING": "1", "STATUS": "stopped: told to stop by SIGTERM"}
    assert alone["policy"] == "anchorvla4d" and 5 <= alone["ticks"] < status["ticks"]
    assert alone["pid"] == status["pid"] == process.pid and alone["stopped"] is None
    assert status["stopped"]["why"] == "told to stop by SIGTERM"


def test_a_served_policy_that_computes_something_else_is_not_fed_and_says_why(
    tmp_path, monkeypatch
):
    exact = families.expected
    monkeypatch.setattr(families, "expected", lambda values: exact(values) * np.float32(1.01))
    bundle = family(tmp_path, FAMILIES["first frame"])
    with systemd(1.0) as watcher:
        for name, value in watcher.environment.items():
            monkeypatch.setenv(name, value)
        with served(bundle) as (process, _):
            until(lambda: len(watcher.heard(MAX_WAIT_S)) and watcher.status())
            process.send_signal(signal.SIGTERM)
            _, err = process.communicate(timeout=60)
        heard, status = watcher.heard(), watcher.status()
    why = "actions of the golden observation: off by 9.9e-03, allowed is 1e-04; run: anchorvla"
    assert f"serve: the self-check failed: {why}" in err
    assert f"self-check: {why}" in status["stopped"]["why"] and status["ticks"] == 0
    assert not any("WATCHDOG" in words for words in heard) and "STOPPING" in heard[-1]


def test_without_watchdog_and_folder_ready_is_told_and_nothing_else_till_the_end(
    demo_bundle, monkeypatch
):
    with systemd(None) as watcher:
        monkeypatch.setenv("NOTIFY_SOCKET", watcher.environment["NOTIFY_SOCKET"])
        monkeypatch.delenv("RUNTIME_DIRECTORY", raising=False)
        with served(demo_bundle):
            (ready,) = watcher.heard(MAX_WAIT_S)
            assert ready == {"READY": "1", "STATUS": "anchorvla4d: good ticks 0"}
            assert watcher.heard(0.3) == []
        assert [*watcher.heard()[-1]] == ["STOPPING", "STATUS"]
