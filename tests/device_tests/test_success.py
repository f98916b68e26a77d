"""Closed-loop evaluation: what is the same on the same seeds, what differs, how it is counted."""

import json
import re
import sys
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
from PIL import Image

from device_tests.success import __main__ as success
from device_tests.success import episodes
from device_tests.success.__main__ import main, write_table
from device_tests.success.delays import sweep
from device_tests.success.episodes import EpisodeResult, SuccessConfig, evaluate, run
from device_tests.success.pictures import FAILED_RGB, PASSED_RGB, draw_sheet, write_film
from device_tests.success.posed import PosedPolicy
from runtime.episode import Answer
from runtime.errors import RobotError
from runtime.robots.metaworld import TASKS, MetaWorldRobot
from runtime.robots.robot import Limits, Observation, Sensor
from tests.graphs import anchored

SHORT = partial(MetaWorldRobot, max_steps=12)
TWO_TASKS = ("reach", "drawer-open")


@pytest.fixture(scope="module")
def config(demo_bundle):
    return SuccessConfig(bundles=(demo_bundle,), tasks=TWO_TASKS, episodes=2, jobs=1)


@pytest.fixture(scope="module")
def warm(config, simulator):
    """The episodes that the others are compared with."""
    return evaluate(config, make_robot=SHORT, num_strips=1)


def episodes_of(evaluation):
    (episodes,) = evaluation.results.values()
    return episodes


def digests(config, **changes):
    return [r.digest for r in episodes_of(evaluate(replace(config, **changes), make_robot=SHORT))]


def test_every_task_runs_on_every_seed(config, warm):
    ran = [(r.task, r.seed) for r in episodes_of(warm)]
    assert ran == [(task, seed) for seed in (10_000, 10_001) for task in TWO_TASKS]
    assert {(r.num_steps, r.num_thoughts) for r in episodes_of(warm)} == {(12, 3)}
    assert len({r.digest for r in episodes_of(warm)}) == 4


def test_a_task_that_needs_a_memory_runs_where_it_is_named_and_not_by_default(config, simulator):
    named = replace(config, tasks=("touch-what-blinked",))
    ran = episodes_of(evaluate(named, make_robot=SHORT))
    assert [(r.seed, r.success, r.num_steps, r.num_thoughts) for r in ran] == [
        (10_000, False, 12, 3),
        (10_001, False, 12, 3),
    ]
    assert "touch-what-blinked" not in SuccessConfig(bundles=config.bundles).tasks
    assert set(TWO_TASKS) < set(SuccessConfig(bundles=config.bundles).tasks)


def test_the_same_seeds_give_the_same_episodes_in_one_process_and_in_two(config, warm):
    assert episodes_of(evaluate(replace(config, jobs=2), make_robot=SHORT)) == episodes_of(warm)


def test_recomputing_everything_gives_the_same_bits(config, warm):
    assert digests(config, cold=True) == [r.digest for r in episodes_of(warm)]


def test_a_recomputed_tick_runs_what_a_kept_one_skips(policy, simulator):
    runs = {}
    for cold in (False, True):
        robot = SHORT(task="reach", seed=0)
        run(PosedPolicy(policy, cold=cold), robot, task="reach", seed=0, execute=5)
        robot.close()
        runs[cold] = policy.interpreter.num_runs
    needs = policy.graph.stage_dependencies
    counts = {
        (kept, again)
        for stage, kept, again in zip(policy.graph.stages, runs[False], runs[True], strict=True)
        if needs[stage.name] == {"anchor"}
    }
    assert (1, 3) in counts and counts <= {(1, 3), (0, 0)}


@pytest.mark.parametrize("change", [{"anchor": "current"}, {"anchor": "wrong"}, {"seed0": 20_000}])
def test_another_anchor_or_seed_changes_every_episode(config, warm, change):
    theirs = digests(config, **change)
    assert all(a != r.digest for a, r in zip(theirs, episodes_of(warm), strict=True))


def test_another_instruction_changes_the_other_tasks_only(config, warm):
    same, changed = (
        {r.digest for r in episodes_of(warm) if r.task == task} for task in ("reach", "drawer-open")
    )
    theirs = set(digests(config, instruction="reach"))
    assert same < theirs and not changed & theirs


class Expert:
    """Knows the goal."""

    chunk_shape = (1, 4)
    inputs: ClassVar = anchored("anchor", "instruction", side=112, state_dim=4)

    def __init__(self, robot):
        self.robot = robot

    def start(self, **_):
        return self

    def act(self, observation, *, at):
        return Answer(self.robot.expert_action()[None], {}, None, at)


def test_the_expert_succeeds_on_the_way_that_policies_take(simulator):
    outcomes = []
    for seed in range(3):
        robot = MetaWorldRobot(task="reach", seed=seed)
        result, _ = run(PosedPolicy(Expert(robot)), robot, task="reach", seed=seed, execute=1)
        outcomes.append(result)
        robot.close()
    assert [r.success for r in outcomes] == [True] * 3
    assert all(r.num_steps == r.num_thoughts < TASKS["reach"].max_steps for r in outcomes)


class CountingRobot:
    """Succeeds at the step at which the first action dimension has added up to `seed % 10`."""

    instruction = "count"

    def __init__(self, *, task, seed):
        self.goal, self.total, self.num_steps = seed % 10, 0.0, 0
        self.task = task
        self.inputs = {
            "frame": Sensor("image", (8, 8, 3), "uint8"),
            "state": Sensor("vector", (1,), "float32"),
        }
        self.limits = Limits(np.array([-2]), np.array([2]), ("",), ("",))

    def reset(self):
        return self.observe()

    def observe(self):
        image = np.full((8, 8, 3), self.num_steps, np.uint8)
        values = {"frame": image, "state": np.zeros(1, np.float32)}
        return Observation(values, dict.fromkeys(values, 0.0), {"frame": self.num_steps})

    def send(self, action_A):
        sent_A = self.limits.clip(action_A)
        self.total += float(sent_A[0])
        self.num_steps += 1
        return sent_A

    def hold(self):
        pass

    @property
    def done(self):
        return self.success or self.num_steps == 6

    @property
    def success(self):
        return self.total >= self.goal

    def close(self):
        pass


class SteadyPolicy:
    """Answers with chunks of three equal actions, as large as the bundle's name says."""

    chunk_shape = (3, 1)
    inputs: ClassVar = anchored("anchor", "instruction", side=8, state_dim=1)

    def __init__(self, bundle):
        self.value = float(bundle.name)
        self.started = []
        self.num_forgotten = 0

    def forget(self):
        self.num_forgotten += 1

    def start(self, *, anchor, instruction, seed):
        self.started.append((int(anchor[0, 0, 0]), instruction, seed))
        return self

    def act(self, observation, *, at):
        assert observation.keys() == {"frame", "state"}
        return Answer(np.full((3, 1), self.value, np.float32), {}, None, at)


def count(*bundles, make_robot=CountingRobot, **options):
    options = {"tasks": ("reach", "push"), "seed0": 1, "episodes": 9, "execute": 2} | options
    config = SuccessConfig(bundles=tuple(map(Path, bundles)), jobs=1, **options)
    return evaluate(config, load=SteadyPolicy, make_robot=make_robot, num_strips=4)


def test_successes_and_steps_are_counted():
    # Six steps of 1 reach the goals 1 to 6 of 1 to 9; seed 0 of ten needs no step and is not in.
    row = count("1").rows["reach"][Path("1")]
    assert (row.rate.successes, row.rate.n, row.median_steps) == (6, 9, 3.5)
    assert row.rate.low == pytest.approx(0.354, abs=1e-3)  # Wilson, 6 of 9
    assert row.other_successes is row.against_first is None


def test_the_mean_is_over_all_tasks_and_missing_for_one():
    rows = count("1").rows
    assert list(rows) == ["reach", "push", "mean"]
    assert (rows["mean"][Path("1")].rate.successes, rows["mean"][Path("1")].rate.n) == (12, 18)
    assert list(count("1", tasks=("push",)).rows) == ["push"]


def test_bundles_are_compared_in_pairs_with_the_first():
    rows = count("0.5", "1").rows["reach"]
    assert rows[Path("0.5")].against_first is None
    pair = rows[Path("1")].against_first
    assert pair is not None
    assert (pair.only_first, pair.only_this) == (0, 3)
    assert pair.difference == pytest.approx(3 / 9)
    assert pair.p == 0.25  # three throws of a fair coin, all on one side
    assert pair.low < 3 / 9 < pair.high


def test_the_table_says_all_of_it():
    text = write_table(count("0.5", "1", anchor="wrong", instruction="drawer-open", cold=True))
    assert 'seeds 1 to 9, 2 actions per thought, anchor: wrong, instruction: "open the dr' in text
    assert "everything recomputed" in text
    assert re.search(r"reach\n +0\.5 +3 of 9 +33\.3 %  \[ 12\.1,  64\.6\] +4 steps\n", text)
    assert re.search(
        r"\n +1 +6 of 9 +66\.7 % .* \+33\.3 points \[.*\], 3 won, 0 lost, p = 0\.25", text
    )
    assert re.search(r"0 of 9 +0\.0 % .* - steps", write_table(count("0")))


def test_thoughts_come_as_often_as_actions_are_used_up():
    results = episodes_of(count("0", execute=3))
    assert {(r.num_steps, r.num_thoughts) for r in results} == {(6, 2)}
    assert {r.num_thoughts for r in episodes_of(count("0", execute=1))} == {6}


def test_a_delay_is_played_in_virtual_time():
    """Six actions, two per thought. Waiting costs time; thinking meanwhile costs the first actions
    of every chunk but the first, and needs chunks that last."""
    waited = episodes_of(count("0", execute=2, delay_steps=3))
    assert {(r.num_steps, r.num_overtaken, r.num_held) for r in waited} == {(6, 0, 0)}
    instant = episodes_of(count("0", execute=2))
    assert [r.digest for r in waited] == [r.digest for r in instant]
    for slow, quick in zip(waited, instant, strict=True):
        # A thought of 2.5 steps swallows one tick, and the next one comes late; three thoughts.
        assert slow.seconds - quick.seconds == pytest.approx(3 * 0.1)
    meanwhile = episodes_of(count("0", execute=2, chunks="async", delay_steps=1))
    assert {(r.num_steps, r.num_thoughts, r.num_overtaken, r.num_held) for r in meanwhile} == {
        (6, 3, 2, 0)
    }
    with pytest.raises(ValueError, match=r"2 control steps .* last 4 steps, and .* lasts 3"):
        count("0", execute=2, chunks="async", delay_steps=2)


def test_a_sweep_of_delays_is_paired_with_no_delay_and_says_what_is_refused():
    config = SuccessConfig(
        bundles=(Path("0.5"),), tasks=("reach", "push"), episodes=3, execute=2, jobs=1
    )
    policy = {"takes_leftover": False, "load": SteppingPolicy, "make_robot": MovingRobot}
    rows = list(sweep(config, [1, 3], 3, **policy))
    ways = [(row.chunks, row.delay_steps, row.rate is None) for row in rows]
    assert ways == [
        ("sync", 0, False), ("sync", 3, False),
        ("async", 1, False), ("rtc", 1, True), ("async", 3, True), ("rtc", 3, True),
    ]  # fmt: skip
    first, waited, meanwhile, cannot, refused, _ = rows
    assert "no input for what is left of the last chunk" in cannot.words()
    assert (first.success, first.motion) == (None, None)
    assert waited.seconds - first.seconds == pytest.approx(6 * 0.1)
    assert waited.motion.figures["mean_jerk"].ratio == pytest.approx(1)
    # 0, 1, 1, 2, 1, 2 and so on against 0, 1, 0, 1: of five seams the first is no step at all.
    assert meanwhile.motion.figures["seam_step"].ratio == pytest.approx(4 / 5)
    assert meanwhile.motion.pairs == 6
    assert "a chunk has to last 6 steps, and this policy's lasts 3" in refused.words()
    assert re.match(
        r"async   1 steps     0 of 6 \[0\.0, 39\.0\] %    1\.3 s, 5\.0 overtaken, 0\.0 held  "
        r"\+0\.0 points \[.*\], jerk [\d.]+ \[.*\], seam step 0\.80 \[",
        meanwhile.words(),
    )


def test_more_actions_than_a_chunk_holds_are_refused():
    with pytest.raises(ValueError, match="execute=4, but a chunk of this policy has 3 actions"):
        count("1", execute=4)


def test_the_policy_gets_the_episodes_seed_and_the_instruction_of_the_other_task():
    policies = []

    def load(bundle):
        policies.append(SteadyPolicy(bundle))
        return policies[-1]

    config = SuccessConfig(
        bundles=(Path("1"),), tasks=("reach", "push"), episodes=2, seed0=3, execute=1, jobs=1
    )
    evaluate(config, load=load, make_robot=CountingRobot)
    evaluate(replace(config, instruction="push"), load=load, make_robot=CountingRobot)
    plain, other = (policy.started for policy in policies)  # loaded once each
    assert plain == [(0, "count", seed) for seed in (3, 3, 4, 4)]
    push = TASKS["push"].instruction
    assert [text for _, text, _ in other] == [push, "count", push, "count"]


class TwoTargetRobot(CountingRobot):
    def achieved(self, task):
        return self.total >= 2 if task == "push" else None


def test_a_robot_that_can_tell_says_whether_the_other_task_was_achieved():
    evaluation = count("0.5", make_robot=TwoTargetRobot, instruction="push")
    rows = {name: row[Path("0.5")] for name, row in evaluation.rows.items()}
    assert rows["reach"].other_successes == 8  # all but goal 1, where the episode ends before
    assert rows["push"].other_successes is None  # its own instruction
    assert "the other task 8" in write_table(evaluation)
    elsewhere = count("0.5", make_robot=TwoTargetRobot, instruction="drawer-open")
    assert {r.other_success for r in episodes_of(elsewhere)} == {None}


def test_actions_that_the_robot_clips_are_counted():
    assert {r.num_clipped_actions for r in episodes_of(count("2"))} == {0}
    assert all(r.num_clipped_actions == r.num_steps for r in episodes_of(count("3")))


class MovingRobot(CountingRobot):
    """Never succeeds, and tells that its one number is a velocity."""

    commands = ("velocity",)
    success = False
    done = property(lambda self: self.num_steps == 12)


class SteppingPolicy(SteadyPolicy):
    """Chunks of three actions, each by `value` larger than the one before; over and over."""

    def act(self, observation, *, at):
        return Answer(self.value * np.arange(3, dtype=np.float32)[:, None], {}, None, at)


def stepping(*bundles, make_robot=MovingRobot, **options):
    config = SuccessConfig(
        bundles=tuple(map(Path, bundles)), tasks=("reach", "push"), episodes=3, jobs=1, **options
    )
    return evaluate(config, load=SteppingPolicy, make_robot=make_robot)


def test_motion_is_measured_where_the_robot_tells_what_it_is_told():
    for result in episodes_of(stepping("0.5", execute=3)):
        # In half of the robot's range, which is 4: 0, 0.25, 0.5, 0, 0.25 and so on.
        assert (result.motion.seam_step, result.motion.within_step) == pytest.approx((0.5, 0.25))
    for result in episodes_of(stepping("0.5", execute=2)):
        assert (result.motion.seam_step, result.motion.within_step) == pytest.approx((0.25, 0.25))


def test_jerk_is_per_second_of_the_loops_own_rate():
    # Of 0, 1, 2, 0, 1, 2 quarters the second differences are 0, -3 and 3 in turn: in twelve actions
    # there are ten of them, six of which are not 0. Over 0.1 s squared.
    (result, *_) = episodes_of(stepping("0.5", execute=3))
    assert result.motion.mean_jerk == pytest.approx(0.75 * 6 / 10 / 0.01)
    assert result.motion.p99_jerk == pytest.approx(75)


def test_the_actions_that_count_are_those_that_the_robot_sent():
    (clipped, *_) = episodes_of(stepping("9", execute=3))
    assert clipped.num_clipped_actions > 0
    assert clipped.motion.seam_step == pytest.approx(1)


def test_bundles_that_move_otherwise_are_compared_in_pairs():
    evaluation = stepping("0.25", "0.5", execute=3)
    for row in evaluation.rows.values():
        assert row[Path("0.25")].motion_against_first is None
        found = row[Path("0.5")].motion_against_first
        assert found.figures["seam_step"].ratio == pytest.approx(2)
        assert found.figures["high_share"].ratio == pytest.approx(1)
    assert evaluation.rows["mean"][Path("0.5")].motion_against_first.pairs == 6
    text = write_table(evaluation)
    assert re.search(r"motion: mean jerk 22.5, p99 jerk .*, step within chunks 0.125\n", text)
    assert "motion, times the first: mean jerk 2.00 [2.00, 2.00], " in text


def test_a_robot_that_does_not_tell_has_no_motion():
    evaluation = stepping("0.25", "0.5", make_robot=CountingRobot, execute=3)
    for row in evaluation.rows["mean"].values():
        assert row.motion is row.motion_against_first is None
    assert "motion" not in write_table(evaluation)


def test_a_robot_without_limits_cannot_be_measured():
    class Limitless(MovingRobot):
        def __init__(self, **how):
            super().__init__(**how)
            self.limits = Limits(np.array([-np.inf]), np.array([np.inf]), ("",), ("",))

    with pytest.raises(ValueError, match="half ranges must be positive and finite"):
        stepping("0.5", make_robot=Limitless, execute=3)


def test_the_simulated_arm_tells_what_its_actions_command(warm):
    # Seconds between commands are the loop's 0.1, and an untrained policy moves at random.
    for result in episodes_of(warm):
        assert 0 < result.motion.mean_jerk <= result.motion.p99_jerk <= 4 * 3**0.5 / 0.1**2
        assert 0 < result.motion.high_share < 1
        assert result.motion.seam_step > 0


def test_a_robot_that_cannot_tell_success_is_refused():
    class Mute(CountingRobot):
        done = property(lambda self: self.num_steps == 6)
        success = None

    with pytest.raises(RobotError, match="reach: this robot cannot tell success"):
        count("1", make_robot=Mute)


def test_the_anchor_and_the_picture_after_every_action_are_kept_of_the_first_bundle():
    evaluation = count("0", "1")
    assert len(evaluation.strips) == 8
    for result, frames in evaluation.strips:
        assert not result.success
        assert [int(frame[0, 0, 0]) for frame in frames] == [0, 1, 2, 3, 4, 5, 6]


def test_the_sheet_has_a_row_per_task_and_a_frame_in_the_colour_of_the_outcome():
    failed, passed = (count(name).strips for name in ("0", "9"))
    sheets = [np.asarray(draw_sheet(strips)) for strips in (failed, passed)]
    assert sheets[0].shape == sheets[1].shape == (2 * (8 + 56), 4 * (3 * 8 + 24), 3)
    for i, colour in enumerate((FAILED_RGB, PASSED_RGB)):
        counted = [int((sheet == colour).all(axis=-1).sum()) for sheet in sheets]
        assert counted[i] > 500 and counted[1 - i] == 0


def test_the_film_shows_an_episode_of_each_task_and_a_success_where_there_is_one(tmp_path):
    write_film(count("1", seed0=5).strips, tmp_path / "film.gif")  # seeds 5 and 6 succeed
    with Image.open(tmp_path / "film.gif") as film:
        assert film.n_frames >= 3
        film.seek(film.n_frames - 1)
        last = np.asarray(film.convert("RGB")).astype(int)

    def near(colour):
        return int((np.abs(last - colour).max(axis=-1) < 16).sum())

    assert near(PASSED_RGB) > 100 and near(FAILED_RGB) == 0


def test_the_command_writes_table_json_sheet_and_film(demo_bundle, simulator, tmp_path, capsys):
    out = tmp_path / "new"
    arguments = [str(demo_bundle), "--tasks", "reach", "--episodes", "1", "--jobs", "1"]
    arguments += ["--json", str(out / "all.json"), "--sheet", str(out / "sheet.png")]
    arguments += ["--film", str(out / "film.gif")]
    assert main(arguments) == 0
    assert re.search(r"reach\n.* of 1 .* %", capsys.readouterr().out)
    document = json.loads((out / "all.json").read_text())
    assert document["config"]["tasks"] == ["reach"]
    assert {"processor", "commit", "date", "versions"} <= document["machine"].keys()
    bundle = document["bundles"][str(demo_bundle)]
    assert "seeded random weights" in bundle["weights"]
    (episode,) = bundle["episodes"]
    assert episode.keys() == set(EpisodeResult.__dataclass_fields__)
    assert bundle["rows"]["reach"]["rate"]["successes"] == int(episode["success"])
    with Image.open(out / "sheet.png") as sheet:
        assert sheet.size == (3 * 112 + 24, 112 + 56)
    assert 0 < (out / "film.gif").stat().st_size < 1.5e6


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["{none}"], 3, "none"),
        (["{bundle}", "{bundle}"], 2, "name at least one bundle, and each once, got"),
        (["{bundle}", "--tasks", "juggle"], 2, "task must be one of reach, "),
        (["{bundle}", "--tasks", "push", "push"], 2, "name at least one task, and each once, got"),
        (["{bundle}", "--instruction", "juggle"], 2, "got 'juggle'"),
        (["{bundle}", "--episodes", "0"], 2, "episodes must be positive, got 0"),
        (["{bundle}", "--execute", "0"], 2, "execute must be positive, got 0"),
        (["{bundle}", "--chunks", "async"], 2, "delay_steps must be at least 1 with chunks=async"),
        (["{bundle}", "--delay-steps", "-1"], 2, "delay_steps must be at least 0 with chunks=sync"),
        (["{bundle}", "--jobs", "0"], 2, "jobs must be positive, got 0"),
        (["{bundle}", "--seed0", "-1"], 2, "seed0 must not be negative, got -1"),
        (["{bundle}", "--json", "{bundle}/manifest.json/x"], 8, "something is in the way"),
    ],
)
def test_an_error_is_one_line_with_its_exit_code(
    demo_bundle, tmp_path, capsys, arguments, code, message
):
    words = {"none": tmp_path / "none", "bundle": demo_bundle}
    assert main([argument.format(**words) for argument in arguments]) == code
    err = capsys.readouterr().err
    assert err.startswith("error: ") and err.count("\n") == 1 and message in err


def test_an_unknown_anchor_is_wrong_usage(demo_bundle, capsys):
    with pytest.raises(SystemExit) as stop:
        main([str(demo_bundle), "--anchor", "none"])
    assert stop.value.code == 2
    with pytest.raises(ValueError, match="anchor must be one of given, current, wrong, got 'none'"):
        SuccessConfig(bundles=(demo_bundle,), anchor="none")  # type: ignore[arg-type]


def test_without_a_gl_library_the_command_ends_with_the_robots_error(
    demo_bundle, simulator, capsys, monkeypatch
):
    monkeypatch.setattr("runtime.robots.rendering._can_load", lambda backend: False)
    assert main([str(demo_bundle), "--episodes", "1", "--jobs", "1"]) == 6
    assert capsys.readouterr().err.startswith("error: cannot render: MUJOCO_GL is ")
    with pytest.raises(RobotError):
        main([str(demo_bundle), "--episodes", "1", "--jobs", "1", "--debug"])


def test_an_error_in_another_process_arrives_here(config, simulator):
    tiny = partial(MetaWorldRobot, image_size=1)
    with pytest.raises(ValueError, match="image_size must be in"):
        evaluate(replace(config, jobs=2), make_robot=tiny)


def test_a_process_that_dies_is_reported(config, monkeypatch):
    def die(*arguments):
        raise BrokenProcessPool

    monkeypatch.setattr(episodes.ProcessPoolExecutor, "map", die)
    with pytest.raises(RobotError, match="one of 2 processes died, perhaps for lack of memory"):
        evaluate(replace(config, jobs=2))


def test_an_interrupt_ends_the_command(demo_bundle, capsys, monkeypatch):
    def interrupt(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(success, "evaluate", interrupt)
    assert main([str(demo_bundle)]) == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_a_terminal_gets_a_bar_with_the_time_left(capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    show = success.show_progress(2)
    for result in episodes_of(count("9", tasks=("reach",), episodes=2)):
        show(result)
    err = capsys.readouterr().err
    bar = r"\[#####     \] 1 of 2 episodes, 1 succeeded, (0:0\d) elapsed, (0:0\d) left"
    elapsed, left = re.search(bar, err).groups()
    assert elapsed == left, "half is done"
    assert "[##########] 2 of 2 episodes" in err and err.endswith("\n")


def test_a_pipe_gets_a_line_now_and_then(capsys, monkeypatch):
    episodes = episodes_of(count("99", tasks=("reach",), episodes=4))
    for period_s, lines in ((3600.0, ["4 of 4"]), (0.0, ["1 of 4", "2 of 4", "3 of 4", "4 of 4"])):
        monkeypatch.setattr(success, "PERIOD_S", period_s)
        show = success.show_progress(4)
        for result in episodes:
            show(result)
        told = capsys.readouterr().err.splitlines()
        assert [line.partition(" episodes, ")[0] for line in told] == lines


def test_the_help_names_every_option(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--help"])
    assert stop.value.code == 0
    out = capsys.readouterr().out
    for name in ("BUNDLE", "seed0", "--anchor", "--instruction", "--sheet", "Exit codes"):
        assert name in out
