"""What an operator is shown of a loop, and how one stops it: from any thread, and for good."""

import gc
from types import SimpleNamespace

import numpy as np
import pytest

from runtime.control.clock import VirtualClock
from runtime.control.guard import Guard, Stopped
from runtime.control.loop import LoopConfig, run_episode
from runtime.control.server.lease import Lease
from runtime.control.server.scene import ServedScene
from runtime.control.server.session import Answered, Session
from runtime.control.sight import PACE_S, SHOWN_S, EpisodeScene, of_networks
from runtime.graph import Graph, Stage
from tests.guard_faults import PERIOD_S, World, sweep
from tests.runtime.stand_ins.pondering import PlacedRobot, PonderingPolicy
from tests.runtime.stand_ins.served import Policy, graph


@pytest.fixture(autouse=True)
def nothing_to_collect(monkeypatch):
    monkeypatch.setattr(gc, "collect", lambda: 0)


def watch_of(scene, names=("x", "", "grip")):
    return scene.begin("episode", names)


def drive(scene, *, look=lambda number: None, robot=None, **config):
    """An episode of at most 20 steps at 10 Hz; `look` is called after each."""
    count = [0]

    def on_step(step):
        count[0] += 1
        look(count[0])

    return run_episode(
        PonderingPolicy(),
        robot or PlacedRobot(),
        LoopConfig(**{"execute": 4, "max_steps": 20} | config),
        clock=VirtualClock(),
        on_step=on_step,
        watch=watch_of(scene),
    )


def figures(sight):
    return {figure.name: figure for figure in sight.figures}


def test_what_is_seen_is_what_the_trace_holds():
    scene, seen = EpisodeScene(graph(), clock=lambda: 0.0), {}
    trace = drive(scene, look=lambda n: seen.update({n: scene.look()}))
    sight = seen[10]
    assert sight.title == "episode" and list(sight.actions) == ["x", "action 1", "grip"]
    sent = [step.sent.tolist() for step in trace.steps[:10]]
    for axis, line in enumerate(sight.actions.values()):
        assert [value for _, value in line] == [row[axis] for row in sent]
        assert [t for t, _ in line] == pytest.approx([0.1 * (n - 9) for n in range(10)])
    told = figures(sight)
    assert told["instruction"].words == "go"
    assert told["step"].words == "10, chunks sync"
    assert told["misses"].words.startswith("0: ") and not told["misses"].is_bad
    assert told["interventions"].words == "none" and not told["interventions"].is_bad
    # A chunk is asked for at steps 0, 4 and 8; frame 8 of the stand-in is 24, 25, 26.
    assert sight.pictures["frame"].tolist() == [[[24, 25, 26]]]
    assert sight.stop is None


def test_no_more_is_shown_than_the_last_seconds():
    scene, seen = EpisodeScene(graph(), clock=lambda: 0.0), []
    drive(scene, look=lambda n: seen.append(scene.look()), robot=PlacedRobot(150), max_steps=150)
    times = [t for t, _ in seen[-1].actions["x"]]
    assert len(times) == SHOWN_S * 10 and times[-1] == 0.0


def test_faults_of_a_loop_are_told_as_such():
    """A robot that clips, and a policy that answers late in every thought."""
    scene, seen, dropped = EpisodeScene(graph(), clock=lambda: 0.0), [], []
    robot, clock, traces = PlacedRobot(), VirtualClock(), []
    robot.send = lambda action_A: np.zeros(3, np.float32)
    policy = PonderingPolicy()
    act = policy.act

    def slow(observation, *, at):
        clock.sleep(0.37)  # three ticks and 0.07 s, which is late by more than half a period
        return act(observation, at=at)

    policy.act = slow

    def watch(trace, stop):
        traces.append(trace)
        watch_of(scene)(trace, stop)

    def look(step):
        seen.append(figures(scene.look()))
        dropped.append(traces[0].num_dropped)

    trace = run_episode(
        policy, robot, LoopConfig(execute=4, max_steps=9), clock=clock, on_step=look, watch=watch
    )
    last = seen[-1]
    assert {value for _, value in scene.look().actions["action 1"]} == {0.0}, "as it was sent"
    assert dropped[-1] > dropped[0] == 0 and not seen[0]["misses"].is_bad
    assert last["misses"].words == f"{dropped[-1]}: {dropped[-1]} ticks dropped, 0 held"
    assert last["misses"].is_bad
    assert "370.0 ms for the last thought" in last["delay"].words
    assert any(told["rate"].is_bad for told in seen)
    assert last["age"].words.startswith(f"{1e3 * trace.steps[-1].age_s:.1f} ms")


def test_the_rate_is_what_came_to_pass_in_the_last_seconds():
    now = [0.0]
    scene, seen = EpisodeScene(graph(), clock=lambda: now[0]), []

    def look(number):
        now[0] += 0.1 if number < 60 else 0.4
        seen.append(figures(scene.look())["rate"].words)

    drive(scene, look=look, robot=PlacedRobot(80), max_steps=80)
    assert seen[0].startswith("10 Hz"), "nothing is told of a moment"
    assert seen[50].startswith("10.0 of 10 Hz")
    assert seen[60 + int(2 * PACE_S / 0.4)].startswith("2.5 of 10 Hz")


def test_calls_of_one_chain_are_one_network_and_those_that_did_not_run_are_kept():
    stages = [
        Stage(name="look", engine="look", inputs={"a": "frame"}, outputs={"o": "seen"}),
        Stage(name="turn_0", engine="turn", inputs={"a": "seen"}, outputs={"o": "t0"}),
        Stage(name="turn_1", engine="turn", inputs={"a": "t0"}, outputs={"o": "chunk"}),
        Stage(name="other", engine="other", inputs={"a": "anchor"}, outputs={"o": "likeness"}),
        Stage(name="host", function="copy", inputs={"value": "anchor"}, outputs={"value": "map"}),
    ]

    class Rows(Graph):
        def __post_init__(self):
            """As it is: only names matter here."""

    plain = graph()
    tensors = {**plain.tensors, "seen": plain.tensors["chunk"], "t0": plain.tensors["chunk"]}
    made = Rows(inputs=plain.inputs, outputs=plain.outputs, tensors=tensors, stages=tuple(stages))
    ran = {"look": 0.001, "turn_0": 0.002, "turn_1": 0.003, "host": 0.5}
    assert of_networks(made, ran) == {"look": 1.0, "turn": 5.0, "other": None}


def test_a_stop_ends_the_episode_and_every_one_after_it():
    scene, robot = EpisodeScene(graph(), clock=lambda: 0.0), PlacedRobot()
    with pytest.raises(Stopped, match="the guard stopped the robot: pressed; it stands and holds: "
                       "run again once it may move"):  # fmt: skip
        drive(scene, look=lambda n: n == 3 and scene.stop("pressed"), robot=robot)
    assert robot.calls == ["send"] * 3 + ["hold"]
    stop = scene.look().stop
    assert (stop.number, stop.why, stop.may_release) == (1, "pressed", False)
    assert not scene.release(1)
    scene.stop("again")
    assert scene.look().stop.why == "pressed"
    again = PlacedRobot()
    with pytest.raises(Stopped, match="pressed"):
        drive(scene, robot=again)
    assert again.calls == ["hold"]


def test_before_the_first_episode_there_is_something_to_see_and_to_stop():
    scene = EpisodeScene(graph())
    assert scene.look().title == "no episode yet"
    scene.stop("pressed early")
    assert scene.look().stop.why == "pressed early"
    robot = PlacedRobot()
    with pytest.raises(Stopped, match="pressed early"):
        drive(scene, robot=robot)
    assert "send" not in robot.calls


def test_an_operator_s_stop_slows_down_within_the_limits_and_outlives_an_episode():
    world = World()
    guard = Guard(world, PERIOD_S)
    guard.begin(world.reset(), 0.0)
    for number in range(13):
        world.now = number * PERIOD_S
        guard.act(sweep(world.now), now=world.now)
    guard.stop("pressed")
    with pytest.raises(Stopped, match="pressed"):
        for number in range(13, 60):
            world.now = number * PERIOD_S
            guard.observe(world.now)
            assert not guard.may_think(world.now)
            guard.act(sweep(world.now), now=world.now)
    moves = np.abs(np.diff(np.stack(world.sent), axis=0)).max(axis=1)
    assert moves[11] > 0.01 and moves[12] > 0.005, "it does not stop dead"
    acceleration = np.abs(np.diff(np.stack(world.sent)[:, :3], 2, axis=0)).max() / PERIOD_S**2
    assert acceleration <= 4.0 + 1e-3, "the description's limit, and float32 over 0.05 s squared"
    assert world.num_holds == 1 and guard.interventions["operator's stop"] > 1
    guard.begin(world.reset(), world.now)
    assert not guard.may_think(world.now)
    with pytest.raises(Stopped, match="pressed"):
        guard.act(sweep(0.0), now=world.now)


@pytest.mark.parametrize(
    ("step_s", "line"),
    [
        (
            0.1,
            [
                (-0.5, 0),
                (-0.4, 3),
                (-0.3, 6),
                (-0.25, 100),
                (-0.15, 103),
                (-0.05, 106),
                (0.05, 109),
            ],
        ),
        (None, [(-0.5, 0), (-0.25, 100)]),
    ],
)
def test_actions_that_were_answered_stand_where_they_are_due_until_the_next_chunk(step_s, line):
    session, lease = Session(Policy(), 0), Lease(10.0, lambda: 20.5)
    chunk = np.arange(12, dtype=np.float32).reshape(4, 3)
    answers = {20.5 - SHOWN_S - 0.1: chunk - 50, 20.0: chunk, 20.25: chunk + 100}
    session.answered += [Answered(at, 0.02, of, step_s, {}) for at, of in answers.items()]
    served = SimpleNamespace(session=session, lease=lease, refused={}, why_unready=lambda: "")
    sight = ServedScene(served, clock=lambda: 20.5).look()
    np.testing.assert_allclose(sight.actions["action 0"], line, atol=1e-9)
    told = figures(sight)
    assert told["rate"].words == "0.4 answers per second"  # two in the last five seconds
    assert told["delay"].words == "20.0 ms for the last answer (median 20.0, p99 20.0)"
    assert told["age"].words == "0.2 s since the last observation came"
