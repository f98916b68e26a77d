"""Leaves that mean something are held against the robot: told, counted, and no action changed."""

import json
import math
from contextlib import closing
from dataclasses import replace

import numpy as np
import pytest

from runtime.control.guard import Stopped
from runtime.control.leaf_watch import LeafChecks, LeafWatch
from runtime.control.leaves import LeafCount, Reading
from runtime.control.recorder import Recorder
from runtime.control.replay import replay
from runtime.control.sight import EpisodeScene
from runtime.control.thinker import InlineThinker, ThreadThinker
from runtime.control.trace import Leaf
from runtime.declarations import Output
from runtime.errors import RobotError
from runtime.meanings import Grasp, JointPositions
from runtime.recordings.journal import Journal
from runtime.robots.robot import Observation
from tests.runtime.stand_ins.served import graph
from tests.runtime.stand_ins.telling import (
    ARM,
    OUTPUTS,
    PERIOD_S,
    Arm,
    TellingPolicy,
    drive,
    shade,
)


@pytest.fixture(autouse=True)
def nothing_to_collect(monkeypatch):
    monkeypatch.setattr("gc.collect", lambda: 0)


def raw(**changes):
    return {**ARM, **changes}


def gripper(**changes):
    return raw(axes=[ARM["axes"][0], {**ARM["axes"][1], **changes}])


def empty(step):
    return [0.1]


def seen_as_felt(shoulder=0.0, elbow=0.0):
    """Joints where an `Arm` feels them, and so far off."""
    return lambda step: [0.3 * step + elbow, 99.0, 0.1 * step + shoulder]


def steps_of(trace, kind):
    return [notice.step for notice in trace.notices if notice.kind == kind]


# Closed from step 20 on, which is sent at 1.0 s; settled at 1.5 s. The policy looks at every fourth
# step, so the first three readings that count are of steps 32, 36 and 40.
def test_a_closed_gripper_that_holds_nothing_is_told_once():
    told, heard = [], []
    policy = TellingPolicy(lambda step: step >= 20, grasp=empty)
    trace = drive(policy, on_notice=told.append, on_leaf=heard.append)
    (notice,) = trace.notices
    assert told == [notice] and notice.step == 40 and notice.leaf == "grasp"
    assert notice.kind == "grasp missed" and not notice.is_stop
    assert notice.looked_at == next(r.looked_at for r in heard if r.number == 11)
    assert notice.words == (
        "leaf grasp: 'grip' is closed since 1.0 s and holds nothing: 0.10, below 0.5 in 3 readings "
        "in a row"
    )
    assert trace.noticed == {"grasp missed": 1}
    assert trace.leaves["grasp"].against == "held against axis 'grip'"
    assert trace.words[-1] == "grasp missed, 1 times"
    assert trace.interventions == {}


@pytest.mark.parametrize(
    ("closes", "grasp", "steps"),
    [
        (lambda step: False, empty, []),
        (lambda step: step >= 20, lambda step: [0.9], []),
        (lambda step: step >= 20, lambda step: [0.5], []),
        (lambda step: step >= 20, lambda step: [0.9 if step == 40 else 0.1], [52]),
        # Something is held at 60: dropped, and told again.
        (lambda step: step >= 20, lambda step: [0.9 if step == 60 else 0.1], [40, 72]),
        # A second try: closed again from 52 on, 2.6 s, settled at 3.1 s: 64, 68, 72.
        (lambda step: 20 <= step < 44 or step >= 52, empty, [40, 72]),
        # Two readings of the first try do not count for the second.
        (lambda step: 20 <= step < 37 or step >= 52, empty, [72]),
        # Opened and closed between two looks: settled anew, at 3.1 s.
        (lambda step: step >= 20 and step not in (50, 51), empty, [40, 72]),
    ],
)
def test_a_grasp_counts_while_the_gripper_is_closed(closes, grasp, steps):
    trace = drive(TellingPolicy(closes, grasp=grasp))
    assert steps_of(trace, "grasp missed") == steps


def test_a_reading_counts_from_when_the_gripper_has_settled():
    checks = LeafChecks(settle_s=12 * PERIOD_S - 1e-6, missed_readings=1)
    policy = TellingPolicy(lambda step: step >= 20, grasp=empty)
    assert steps_of(drive(policy, checks=checks), "grasp missed") == [32]
    checks = replace(checks, settle_s=12 * PERIOD_S + 1e-6)
    assert steps_of(drive(policy, checks=checks), "grasp missed") == [36]


def test_a_gripper_may_be_closed_at_the_upper_end():
    policy = TellingPolicy(lambda step: step < 60, grasp=empty)
    trace = drive(policy, Arm(100, raw=gripper(closed="high")))
    assert steps_of(trace, "grasp missed") == [80]


@pytest.mark.parametrize(("sent", "count"), [(0.49, 1), (0.51, 0)])
def test_it_is_told_to_close_below_the_middle_of_its_range(sent, count):
    """The range is 0.02 to 0.1 m, and 1 of the action is 0.08 m."""
    policy = TellingPolicy(lambda step: 1 - sent, grasp=empty)
    trace = drive(policy, Arm(100, raw=gripper(low=0.02, high=0.1, offset=0.02)))
    assert len(trace.notices) == count


def test_no_action_is_changed_by_what_leaves_say():
    def sent(**leaves):
        robot = Arm(100, raw=ARM)
        trace = drive(TellingPolicy(lambda step: step >= 20, **leaves), robot)
        return trace, np.stack(robot.applied)

    quiet, without = sent(plain=lambda step: [0.0])
    loud, with_notices = sent(grasp=empty, joints=seen_as_felt(elbow=3.0), future=shade(0))
    assert quiet.notices == [] and loud.noticed == {"grasp missed": 1, "perception": 1}
    assert np.array_equal(without, with_notices)


@pytest.mark.parametrize(
    ("off", "steps"),
    [
        ({}, []),
        ({"elbow": 0.19}, []),
        ({"shoulder": -0.19}, []),
        ({"elbow": 0.21}, [16]),
        ({"elbow": -0.21}, [16]),
        ({"shoulder": 0.21}, [16]),
        ({"elbow": 2 * math.pi + 0.1}, []),
        ({"elbow": 2 * math.pi - 0.3}, [16]),
        ({"shoulder": math.pi}, [16]),
    ],
)
def test_joints_are_compared_with_what_their_encoders_felt_then(off, steps):
    """They move by up to 0.3 rad a step, so no other observation would do."""
    trace = drive(TellingPolicy(joints=seen_as_felt(**off)))
    assert steps_of(trace, "perception") == steps
    assert trace.leaves["joints"].count.num_run == 100
    assert trace.leaves["joints"].against == "held against the encoders of 2 joints of 3"


def test_the_joint_that_is_off_is_named():
    trace = drive(TellingPolicy(joints=seen_as_felt(elbow=0.3, shoulder=-0.5)))
    assert trace.notices[0].words == (
        "leaf joints: joint 'shoulder' is seen 0.50 rad from where it is felt, 0.2 are allowed, in "
        "5 readings in a row"
    )


def test_a_perception_that_comes_back_is_told_again_when_it_is_lost():
    lost = seen_as_felt(elbow=1.0)
    trace = drive(
        TellingPolicy(joints=lambda step: seen_as_felt()(step) if step == 40 else lost(step))
    )
    assert steps_of(trace, "perception") == [16, 60]


def test_a_reading_in_a_thread_is_of_its_own_observation():
    for thinker in (ThreadThinker, InlineThinker):
        policy = TellingPolicy(joints=seen_as_felt())
        trace = drive(policy, thinker=thinker, checks=LeafChecks(astray_readings=1))
        assert trace.notices == []


def test_what_is_felt_as_no_number_is_not_compared():
    class Numb(Arm):
        def observe(self):
            seen = super().observe()
            state = seen.values["state"].copy()
            state[1] = math.nan
            return Observation({**seen.values, "state": state}, seen.at, seen.frame_ids)

    unmeasured = {k: v for k, v in ARM["axes"][0].items() if k not in ("measured", "joint")}
    joints = {"shoulder": {"index": 1}, **ARM["joints"]}
    robot = Numb(60, raw=raw(axes=[unmeasured, ARM["axes"][1]], joints=joints))
    trace = drive(TellingPolicy(joints=seen_as_felt()), robot, num_steps=60)
    assert trace.notices == [] and "of 2 joints" in trace.leaves["joints"].against
    trace = drive(TellingPolicy(joints=seen_as_felt(elbow=0.5)), robot, num_steps=60)
    assert steps_of(trace, "perception") == [16]


def test_only_where_it_shall_a_lost_perception_stops_the_robot(tmp_path):
    stop = LeafChecks(on_perception="stop")
    policy = TellingPolicy(lambda step: step >= 2, grasp=empty, joints=seen_as_felt(elbow=1.0))
    traces, robot = [], Arm(100, raw=ARM)
    watch = {"watch": lambda trace, stop: traces.append(trace)}
    with pytest.raises(Stopped, match="perception: leaf joints: joint 'elbow' is seen") as stopped:
        drive(policy, robot, checks=stop, flight=tmp_path, **watch)
    # Read in the step of the look, 16, and heard of in the next one, whose action it forbids.
    assert len(traces[0].steps) == 17 and robot.num_holds >= 1
    assert [notice.is_stop for notice in traces[0].notices] == [True]
    assert traces[0].interventions["perception"] == 1
    record = json.loads(stopped.value.path.read_text())
    assert record["interventions"]["perception"] == 1
    assert [notice["kind"] for notice in record["notices"]] == ["perception"]
    assert record["notices"][0]["leaf"] == "joints" and "rad" in record["notices"][0]["words"]
    assert record["notices"][0]["looked_at_s"] == traces[0].notices[0].looked_at
    assert len(drive(policy, flight=tmp_path).steps) == 100


def test_a_missed_grasp_never_stops_the_robot():
    policy = TellingPolicy(lambda step: step >= 20, grasp=empty, joints=seen_as_felt())
    trace = drive(policy, checks=LeafChecks(on_perception="stop"))
    assert len(trace.steps) == 100 and [n.is_stop for n in trace.notices] == [False]


def test_a_robot_that_is_stopped_slows_down_and_may_not_think(tmp_path):
    """Position limits: from full speed it takes several steps to stand."""
    joint = {
        "name": "pan", "joint": "shoulder", "control": "velocity", "unit": "rad",
        "velocity": 1.0, "acceleration": 4.0, "measured": {"index": 1},
    }  # fmt: skip

    class Turning(TellingPolicy):
        def act(self, observation, *, at):
            answer = super().act(observation, at=at)
            answer.actions[:, 0] = 0.9
            return answer

    policy = Turning(joints=seen_as_felt(elbow=1.0))
    robot, traces = Arm(100, raw=raw(axes=[joint, ARM["axes"][1]])), []
    journal = tmp_path / "stop.zip"
    with pytest.raises(Stopped), Recorder(journal) as recorder:
        drive(
            policy, robot, checks=LeafChecks(on_perception="stop"), recorder=recorder,
            watch=lambda trace, stop: traces.append(trace),
            thinker=lambda policy, clock: InlineThinker(recorder.watch(policy), clock),
        )  # fmt: skip
    speeds = [float(action[0]) for action in robot.applied]
    assert speeds[16] == pytest.approx(0.9) and speeds[-1] == 0.0
    assert all(a > b for a, b in zip(speeds[16:], speeds[17:-1], strict=False))
    assert 17 + 5 <= len(speeds) <= 17 + 7, "0.9 rad/s at 0.2 rad/s less in each step"
    assert traces[0].interventions["perception"] == len(speeds) - 17
    assert traces[0].interventions["no thought: perception"] >= 1
    with closing(Journal(journal)) as recorded:
        again = replay(recorded, policy)
    assert again.is_exact and again.num_ticks == len(speeds) - 1


@pytest.mark.parametrize(
    ("leaf", "value", "said"),
    [
        ("grasp", [math.nan], "ValueError: a grasp that is not finite: float64 [1]"),
        ("grasp", [1.5], "a grasp is one number in [0, 1], got 1.5"),
        ("grasp", [-3.0], "a grasp is one number in [0, 1], got -3"),
        ("grasp", [0.5, 0.5], "a grasp is one number in [0, 1], got float64 [2]"),
        ("grasp", ["no"], "expected numbers that a grasp has, got <U2 [1]"),
        ("joints", [0.0, 0.0, math.inf], "a joint positions that is not finite"),
        ("joints", [0.0, 0.0], "expected 3 joint positions, got float64 [2]"),
        ("future", np.zeros((4, 4)), "a future image is [H, W, 3], got float64 [4, 4]"),
        ("future", np.full((4, 4, 3), 400.0), "a future image is from 0 to 255, got 400 to 400"),
        ("future", np.full((4, 4, 3), -9.0), "a future image is from 0 to 255, got -9 to -9"),
        ("future", np.full((4, 4, 3), math.nan), "a future image that is not finite"),
    ],
)
def test_what_a_leaf_cannot_say_is_counted_as_failed_and_the_robot_goes_on(leaf, value, said):
    trace = drive(TellingPolicy(lambda step: True, **{leaf: lambda step: value}), num_steps=30)
    count = trace.leaves[leaf].count
    assert len(trace.steps) == 30 and trace.notices == []
    assert (count.num_failed, count.num_run) == (30, 0) and said in count.error
    assert said in trace.words[-1]


@pytest.mark.parametrize(
    ("described", "outputs", "against"),
    [
        (None, {}, "no robot description says when a gripper is closed"),
        (raw(axes=ARM["axes"][:1] * 1), {}, "no gripper is called"),
        (ARM, {"grasp": Output(means=Grasp(gripper="left"))},
         "no gripper is called 'left', the robot description has 'grip'"),
    ],
)  # fmt: skip
def test_what_cannot_be_checked_says_why(described, outputs, against):
    if described is not None and len(described["axes"]) == 1:
        described = raw(axes=[described["axes"][0], {**described["axes"][0], "name": "tilt",
                                                     "joint": "wrist"}])  # fmt: skip
        against = "it names no gripper, the robot description has none"
    policy = TellingPolicy(lambda step: True, grasp=empty)
    policy.outputs = {**OUTPUTS, **outputs}
    trace = drive(policy, Arm(60, raw=described), num_steps=60)
    assert trace.notices == [] and against in trace.leaves["grasp"].against
    assert trace.leaves["grasp"].against in trace.words[-1]


def test_joints_that_nobody_feels_say_so():
    policy = TellingPolicy(joints=seen_as_felt(elbow=1.0))
    trace = drive(policy, Arm(60), num_steps=60)
    assert trace.leaves["joints"].against.startswith("not checked: no robot description")
    policy.outputs = {**OUTPUTS, "joints": Output(means=JointPositions(names=("knee", "", "toe")))}
    trace = drive(policy, num_steps=60)
    assert trace.notices == [] and trace.leaves["joints"].against == (
        "not checked: no encoder is called 'knee' or like the others, the robot description has "
        "'pan', 'shoulder', 'elbow'"
    )


def test_an_encoder_that_the_robot_does_not_show_is_refused():
    robot = Arm(20, raw=raw(joints={"elbow": {"index": 3}}))
    with pytest.raises(RobotError, match="the robot description counts to number 3 of the input"):
        drive(TellingPolicy(), robot, leaves=["plain"])


def test_of_several_grippers_the_named_one_counts():
    left = {**ARM["axes"][1], "name": "left"}
    robot = Arm(100, raw=raw(axes=[{**left, "scale": 0.08, "offset": 0.04}, ARM["axes"][1]]))
    policy = TellingPolicy(lambda step: step >= 20, grasp=empty)
    assert "it names no gripper" in drive(policy, robot).leaves["grasp"].against
    policy.outputs = {**OUTPUTS, "grasp": Output(means=Grasp(gripper="grip"))}
    assert steps_of(drive(policy, robot), "grasp missed") == [40]
    policy.outputs = {**OUTPUTS, "grasp": Output(means=Grasp(gripper="left"))}
    assert steps_of(drive(policy, robot), "grasp missed") == []


def drive_with_resets(policy, at_steps, **options):
    """The policy begins again behind these actions."""
    thinkers, sent = [], []

    def thinker(policy, clock):
        thinkers.append(InlineThinker(policy, clock))
        return thinkers[0]

    def on_step(step):
        sent.append(step)
        if len(sent) in at_steps:
            thinkers[0].reset()

    return drive(policy, thinker=thinker, on_step=on_step, num_steps=60, **options)


def test_behind_a_reset_readings_begin_anew():
    policy = TellingPolicy(joints=seen_as_felt(elbow=1.0))
    trace = drive_with_resets(policy, (15, 31))
    # Looks at 0, 4, 8, 12, then at 15, 19, 23, 27, and at 31, 35, 39, 43, 47.
    assert steps_of(trace, "perception") == [47]


def test_behind_a_reset_nothing_is_expected_of_before():
    trace = drive_with_resets(TellingPolicy(future=shade(0)), (15,))
    pairs = trace.leaves["future"].foreseen
    # Asked at 0 and 4 and due at 8 and 12; at 8 and 12 and never; at 15, 19 ... 59, of which the
    # last one is not heard of.
    assert pairs.num_came == 2 + 11
    assert [p.asked_step for p in pairs.pairs.things.values()][:2] == [0, 15]


@pytest.fixture
def heard():
    """A watch whose leaf is astray in every reading; questions; and readings by number."""
    told, arm = [], Arm(2, raw=ARM)
    checks, seen = LeafChecks(astray_readings=1), arm.reset()
    leaves = {"joints": Leaf(LeafCount())}
    watch = LeafWatch(OUTPUTS, leaves, arm.description, checks, tell=told.append)

    def ask(number):
        watch.ask(number, 10 * number, seen)

    def hear(number):
        watch.hear(Reading("joints", np.full(3, 1.0), number, 0.0, 0.0, 0.0, 0.0))
        return [notice.step for notice in told]

    return watch, ask, hear


def test_a_reading_of_before_a_reset_says_nothing(heard):
    watch, ask, hear = heard
    ask(1)
    watch.reset()
    assert hear(1) == []
    ask(2)
    assert hear(2) == [20]


def test_observations_of_long_ago_are_not_kept(heard):
    _, ask, hear = heard
    for number in range(1, 9):
        ask(number)
    assert hear(1) == hear(4) == []
    assert hear(5) == [50]


def test_ten_thousand_steps_keep_few_pictures_and_every_number():
    policy = TellingPolicy(
        lambda step: step % 100 >= 20,
        grasp=empty, joints=seen_as_felt(elbow=1.0), future=shade(lambda step: (step + 8) % 200),
    )  # fmt: skip
    robot = Arm(10_000, felt=lambda step: (0.1 * (step % 50), 0.3 * (step % 50)), raw=ARM)
    policy.leaves["joints"] = lambda step: seen_as_felt(elbow=step % 1000 >= 500)(step % 50)
    trace = drive(policy, robot, num_steps=10_000)
    assert trace.noticed == {"grasp missed": 100, "perception": 10}
    assert steps_of(trace, "grasp missed") == [100 * n + 40 for n in range(100)]
    assert steps_of(trace, "perception") == [1000 * n + 516 for n in range(10)]
    foreseen = trace.leaves["future"].foreseen
    assert foreseen.num_came == 2500 and len(foreseen.pairs.things) <= 9
    assert len(foreseen.looks) == 2500 and trace.num_dropped == 0
    assert all(step.late_s == 0 for step in trace.steps)


def test_an_operator_sees_what_leaves_say():
    scene, seen = EpisodeScene(graph(), clock=lambda: 0.0), []
    policy = TellingPolicy(lambda step: step >= 2, grasp=empty, future=shade(lambda s: s + 9))
    drive(
        policy, watch=scene.begin("one", ("pan", "grip")), num_steps=40,
        on_step=lambda step: seen.append(scene.look()),
    )  # fmt: skip
    told = [{figure.name: figure for figure in sight.figures} for sight in seen]
    assert told[4]["leaves"].words == "none" and not told[4]["leaves"].is_bad
    assert told[4]["future"].words == "no picture came yet"
    assert told[-1]["leaves"].words.startswith(
        "grasp missed 1; the last one: leaf grasp: 'grip' is"
    )
    assert told[-1]["leaves"].is_bad
    assert told[-1]["future"].words == "8 pictures came, the last 0.004 off, progress 0.89"
    assert list(seen[4].pictures) == ["frame"]
    assert list(seen[-1].pictures) == ["frame", "future: expected, and what came below"]
    both = seen[-1].pictures["future: expected, and what came below"]
    assert both.shape == (6 + 4 + 6, 8, 3)
    assert (both[:6] == 37).all() and (both[6:10] == 255).all() and (both[10:] == 36).all()


def test_leaves_that_mean_nothing_are_read_and_nothing_more():
    scene = EpisodeScene(graph(), clock=lambda: 0.0)
    policy = TellingPolicy(lambda step: True, plain=lambda step: [math.nan])
    trace = drive(policy, watch=scene.begin("one", ("pan", "grip")))
    leaf = trace.leaves["plain"]
    assert (leaf.against, leaf.foreseen, trace.notices) == ("", None, [])
    assert leaf.count.num_run == 100
    assert "leaves" not in {figure.name for figure in scene.look().figures}


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"held_from": 0.0}, "held_from must be in (0, 1), got 0.0"),
        ({"closed_below": 1.0}, "closed_below must be in (0, 1), got 1.0"),
        ({"settle_s": -1.0}, "settle_s must not be negative"),
        ({"settle_s": math.nan}, "settle_s must not be negative"),
        ({"tolerance_rad": 0.0}, "tolerance_rad in (0, pi], got 0.5 and 0.0"),
        ({"tolerance_rad": 90.0}, "tolerance_rad in (0, pi], got 0.5 and 90.0"),
        ({"missed_readings": 0}, "must be at least 1, got 0 and 5"),
        ({"astray_readings": 0}, "must be at least 1, got 3 and 0"),
        ({"on_perception": "hold"}, "on_perception must be warn or stop, got 'hold'"),
    ],
)
def test_checks_that_check_nothing_are_refused(fields, said):
    with pytest.raises(ValueError) as refused:
        LeafChecks(**fields)
    assert said in str(refused.value)
