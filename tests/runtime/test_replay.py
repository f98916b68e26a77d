"""What a run records is what happened, and replaying it gives the same actions to the bit."""

import contextlib
import json
import threading
import time
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import msgspec
import numpy as np
import pytest

import runtime.control.recorder as recorder_module
from models.demo import EPISODES
from runtime.__main__ import main
from runtime.anchor import Every
from runtime.control.clock import VirtualClock
from runtime.control.delay import Delay
from runtime.control.loop import LoopConfig, run_episode
from runtime.control.recorder import Recorder
from runtime.control.replay import replay
from runtime.control.thinker import InlineThinker
from runtime.declarations import Input
from runtime.episode import Answer
from runtime.errors import ObservationError, OutputError, RecordingError
from runtime.recordings.journal import JOURNAL, Journal, JournalWriter, foreign, free_path
from runtime.recordings.png import decode_png, encode_png_quickly
from runtime.recordings.recording import load_recording
from runtime.robots import metaworld
from runtime.robots.description import Description, read_description
from runtime.robots.replay import ReplayedRobot
from tests.graphs import vectors
from tests.guard_faults import World, sweep
from tests.pages import Page, broken_promises
from tests.runtime.stand_ins.pondering import PlacedRobot, PonderingPolicy

PACE = LoopConfig(rate_hz=20, execute=4, max_steps=24)
TIGHT = 0.3
"""Of the simulator's limits: some actions of the random demo policy break them."""


@pytest.fixture(autouse=True)
def nothing_to_collect(monkeypatch):
    monkeypatch.setattr("gc.collect", lambda: 0)


def opened(path):
    return contextlib.closing(Journal(path))


def tight(fraction=TIGHT):
    """The simulator's description, narrower."""
    found = read_description(Path(metaworld.__file__).with_name("metaworld.json"))
    raw = msgspec.to_builtins(found)
    for part in (*raw["axes"], *raw["norms"]):
        for key in {"velocity", "acceleration"} & {k for k, v in part.items() if v}:
            part[key] *= fraction
    return msgspec.convert(raw, Description)


def record(path, policy, *, tell=None, anchor=None, limits=None, delay_s=0.0, robot=None, **config):
    """An episode in virtual time, and its trace."""
    clock = VirtualClock()
    robot = robot or ReplayedRobot(load_recording(EPISODES / "touch-red-1.npz"))
    with Recorder(path, every_step=config.pop("every_step", False)) as recorder:
        thinker = InlineThinker(recorder.watch(policy), clock, delay_s)
        trace = run_episode(
            policy, robot, replace(PACE, **config), seed=5, anchor_policy=anchor, clock=clock,
            thinker=thinker, limits=limits, recorder=recorder,
            delay=Delay(median_s=delay_s, largest_s=delay_s, num_thoughts=3) if delay_s else None,
            on_step=lambda step: tell(thinker, step) if tell else None,
        )  # fmt: skip
    return trace


def by_step(messages):
    """Tells a thinker something at some steps."""
    count = [0]

    def tell(thinker, step):
        count[0] += 1
        if count[0] in messages:
            method, *values = messages[count[0]]
            getattr(thinker, method)(*values)

    return tell


EVENTFUL = {5: ("say", "touch the blue marker"), 10: ("latch", "anchor"), 14: ("reset",)}


@pytest.mark.parametrize("chunks", ["sync", "async", "rtc"])
def test_an_eventful_episode_replays_bit_for_bit(policy, tmp_path, chunks):
    """With interventions, new anchors by two ways, a new instruction and a reset."""
    trace = record(
        tmp_path / "a.zip", policy, tell=by_step(EVENTFUL), anchor=Every(2), limits=tight(),
        chunks=chunks, delay_s=0.0 if chunks == "sync" else 0.1,
    )  # fmt: skip
    assert trace.interventions and trace.num_clipped
    with opened(tmp_path / "a.zip") as journal:
        policy.forget()
        done = replay(journal, policy)
        assert (done.thought, done.tick) == (None, None) and done.is_exact
        assert done.told == {"start": 2, "say": 1, "latch": 1}
        assert done.num_thoughts == len(journal.named("act")) >= 6
        sent = [tick["command"] for tick in journal.ticks if tick["sent"]]
        assert np.array_equal(sent, [step.sent for step in trace.steps])
        assert done.num_ticks == len(journal.ticks) == len(sent) + trace.num_waited + trace.num_held
        assert any(event["anchors"] == {"": True} for event in journal.named("act"))


def test_replay_sees_another_seed_anchor_instruction_and_picture(policy, tmp_path):
    """Each is planted into the events of a recorded episode; every one moves the actions."""
    path = tmp_path / "a.zip"
    record(path, policy, tell=by_step({5: ("say", "touch the blue marker")}), anchor=Every(3))

    def other(kind, change):
        with opened(path) as journal:
            change([event for event in journal.events if event["kind"] == kind])
            return replay(journal, policy)

    def no_anchor(acts):
        for act in acts:
            act["anchors"] = {}

    def same_picture(acts):
        acts[3]["values"]["frame"] = acts[0]["values"]["frame"]

    planted = {
        0: ("start", lambda starts: starts[0].update(seed=6)),
        2: ("told", lambda told: told[0]["values"].update(instruction="open the drawer")),
        3: ("act", same_picture),
    }
    for first, (kind, change) in planted.items():
        done = other(kind, change)
        assert done.thought.number == first and not done.is_exact, kind
        assert "step 0, dimension 0 (" in done.thought.words or "recorded" in done.thought.words
        assert 0 < done.largest < 10 and done.num_other >= 1
        assert done.tick is not None and done.tick.number == 4 * first
    done = other("act", no_anchor)
    assert done.thought.number == 3, "Every(3) takes the fourth frame as the anchor"


def test_replay_sees_a_guard_that_sends_otherwise(policy, tmp_path):
    record(tmp_path / "a.zip", policy, limits=tight())
    with opened(tmp_path / "a.zip") as journal:
        described = journal.about["robot"]["description"]
        journal.about["robot"]["description"] = msgspec.to_builtins(tight(0.9))
        done = replay(journal, policy)
        assert done.thought is None and done.num_other_ticks
        assert "recorded" in done.tick.words and "now" in done.tick.words
        journal.about["robot"]["description"] = described
        journal.about["interventions"] = [["made up"] for _ in journal.interventions]
        assert replay(journal, policy).tick.words.startswith("the guard said made up, now")


def test_a_last_bit_is_a_difference(tmp_path):
    record(tmp_path / "a.zip", PonderingPolicy(), robot=PlacedRobot())
    policy = PonderingPolicy()
    act = policy.act

    def off_by_a_bit(observation, *, at):
        answer = act(observation, at=at)
        if len(policy.calls) == 4:
            answer.actions[3, 1] = np.nextafter(answer.actions[3, 1], np.float32(9))
        return answer

    policy.act = off_by_a_bit
    with opened(tmp_path / "a.zip") as journal:
        done = replay(journal, policy)
    assert done.num_other == 1 and done.thought.number == 2
    assert done.thought.words == "step 3, dimension 1: recorded 3, now 3.00000024"
    assert done.tick.number == 11 and done.num_other_ticks == 1


def test_the_spread_of_samples_is_compared_too(tmp_path):
    """The guard may refuse a chunk for it, whatever its actions are."""

    def spreading(*spreads):
        policy = PonderingPolicy()
        act, left = policy.act, list(spreads)
        policy.act = lambda seen, *, at: replace(act(seen, at=at), spread=left.pop(0))
        return policy

    record(tmp_path / "a.zip", spreading(0.1, 0.2, 0.3, np.nan, 0.1, 0.2), robot=PlacedRobot())
    with opened(tmp_path / "a.zip") as journal:
        assert replay(journal, spreading(0.1, 0.2, 0.3, np.nan, 0.1, 0.2)).is_exact
        done = replay(journal, spreading(0.1, 0.2, 0.3, 0.4, 0.1, 0.2))
    assert (done.num_other, done.thought.number) == (1, 3)
    assert done.thought.words == "spread of the samples: recorded nan, now 0.4"


def test_ticks_tell_what_the_trace_tells(tmp_path):
    trace = record(
        tmp_path / "a.zip", PonderingPolicy(), robot=PlacedRobot(), chunks="async", delay_s=0.11,
    )  # fmt: skip
    with opened(tmp_path / "a.zip") as journal:
        ticks = journal.ticks
        assert replay(journal, PonderingPolicy()).is_exact
    sent = ticks[ticks["sent"]]
    assert np.array_equal(sent["action"], [step.action for step in trace.steps])
    assert sent["age_s"].tolist() == [step.age_s for step in trace.steps]
    assert [int(t["fresh"] > 0) for t in sent] == [int(s.act_s is not None) for s in trace.steps]
    assert len(ticks) - len(sent) == trace.num_waited == 3
    assert np.isnan(ticks["command"][:3]).all() and ticks["step"].tolist() == list(
        range(len(ticks))
    )
    assert np.diff(ticks["acted_s"]) == pytest.approx(0.05)
    assert (ticks["record_s"] > 0).all()


def test_what_is_left_of_a_chunk_is_recorded_and_replayed(tmp_path):
    policy = PonderingPolicy(takes_leftover=True)
    record(
        tmp_path / "a.zip", policy, robot=PlacedRobot(), chunks="rtc", delay_s=0.11,
        tell=by_step({6: ("say", "on"), 13: ("reset",)}),
    )  # fmt: skip
    again = PonderingPolicy(takes_leftover=True)
    with opened(tmp_path / "a.zip") as journal:
        assert replay(journal, again).is_exact
        assert journal.ticks["reset"].sum() == 1
    assert [x.tobytes() for x in again.leftovers] == [x.tobytes() for x in policy.leftovers]
    assert any((leftover[:, 0] == 1).any() for leftover in again.leftovers)


class Sweeping:
    """A policy of the watched arm: where it should be, by the time of the observation."""

    chunk_shape = (8, 4)
    stats = None
    inputs: ClassVar = {
        **{
            name: Input(kind="image", source="robot", shape=(32, 32, 3), dtype="uint8", pace="tick")
            for name in ("front", "wrist")
        },
        **vectors("state", width=4),
    }

    def start(self, *, seed, anchor_policy=None):
        return self

    def act(self, observation, *, at):
        return Answer(np.stack([sweep(at + i / 20) for i in range(8)]), {}, None, at)


class Wall(World):
    """The world's clock is the loop's."""

    @property
    def now(self):
        return self.clock.now

    @now.setter
    def now(self, value):
        """It goes by itself."""


def test_what_the_guard_saw_is_replayed_tick_by_tick(tmp_path):
    """An arm that is stuck for a while, black pictures, and ticks that are missed."""
    clock = VirtualClock()
    Wall.clock = clock
    robot = Wall()
    count = [0]

    def plant(step):
        count[0] += 1
        robot.black = 20 <= count[0] < 24
        robot.stuck_A = robot.at_A.copy() if count[0] == 30 else robot.stuck_A
        robot.stuck_A = None if count[0] == 38 else robot.stuck_A
        clock.sleep(0.18 if count[0] in (10, 45) else 0.0)

    with Recorder(tmp_path / "a.zip") as recorder:
        trace = run_episode(
            Sweeping(), robot, replace(PACE, max_steps=60), clock=clock, recorder=recorder,
            on_step=plant,
        )  # fmt: skip
    assert trace.num_dropped == 4 and len(trace.interventions) >= 3
    with opened(tmp_path / "a.zip") as journal:
        done = replay(journal, Sweeping())
        assert (done.thought, done.tick, done.num_ticks) == (None, None, len(journal.ticks))
        assert journal.ticks["dropped"].sum() == 4
        looks = journal.named("look")
        seen = [looks[number]["at_s"]["state"] for number in journal.ticks["look"]]
        assert np.allclose(seen, journal.ticks["acted_s"])
        journal.ticks["dropped"] = 0
        assert replay(journal, Sweeping()).tick is not None


def test_what_is_written_waits_no_more(tmp_path):
    """Three pictures fit, and many more come while the thread keeps up."""

    until = time.monotonic() + 10

    def wait(step):
        while recorder.waiting_bytes and time.monotonic() < until:
            time.sleep(0.001)

    with Recorder(tmp_path / "a.zip", every_step=True, backlog_bytes=300) as recorder:
        run_episode(
            PonderingPolicy(), PlacedRobot(), PACE, clock=VirtualClock(), recorder=recorder,
            on_step=wait,
        )  # fmt: skip
    assert sum(recorder.num_lost.values()) == 0 and "nothing lost" in recorder.words


def test_a_policy_of_other_chunks_is_refused(tmp_path):
    record(tmp_path / "a.zip", PonderingPolicy(), robot=PlacedRobot())
    policy = PonderingPolicy()
    policy.chunk_shape = (8, 2)
    with (
        opened(tmp_path / "a.zip") as journal,
        pytest.raises(
            ValueError, match=r"with chunks \[8, 3\], this policy's are \[8, 2\]: name the"
        ),
    ):
        replay(journal, policy)


def test_what_an_own_policy_of_anchors_decided_is_replayed_without_it(policy, tmp_path):
    class Mine:
        def __init__(self):
            self.count = 0

        def wants(self, tick):
            self.count += 1
            return self.count in (3, 4)

    record(tmp_path / "a.zip", policy, anchor=Mine())
    with opened(tmp_path / "a.zip") as journal:
        said = [event["anchors"][""] for event in journal.named("act")]
        assert said == [False, False, True, True, False, False]
        assert replay(journal, policy).is_exact


def test_a_run_that_ends_in_an_error_is_recorded_up_to_it(tmp_path):
    policy = PonderingPolicy()
    act = policy.act

    def fail(observation, *, at):
        if len(policy.calls) > 3:
            raise ObservationError("the picture is too\nsmall")
        return act(observation, at=at)

    policy.act = fail
    with pytest.raises(ObservationError):
        record(tmp_path / "a.zip", policy, robot=PlacedRobot())
    policy.calls.clear()
    with opened(tmp_path / "a.zip") as journal:
        assert journal.about["error"] == "ObservationError: the picture is too small"
        assert len(journal.ticks) == 12
        assert replay(journal, policy).is_exact
    with opened(tmp_path / "a.zip") as journal:
        done = replay(journal, PonderingPolicy())
        assert done.thought.words == f"recorded {journal.about['error']}, now an answer"
        other = PonderingPolicy()
        other.act = lambda observation, *, at: np.linalg.inv(np.zeros((2, 2)))
        done = replay(journal, other)
        assert (done.num_other, done.thought.number) == (4, 0)
        assert done.thought.words == "recorded an answer, now LinAlgError: Singular matrix"
        journal.named("act")[0]["error"] = "ValueError: another one"
        assert replay(journal, other).thought.words.startswith("ValueError: another one, now LinAl")


def test_where_the_disk_is_too_slow_the_loop_goes_on_and_the_loss_is_counted(tmp_path, monkeypatch):
    """Nothing is written before the episode is over; 30 pictures of 3 bytes fit into 90."""
    gate = threading.Event()
    run = Recorder._run
    monkeypatch.setattr(Recorder, "_run", lambda self: (gate.wait(10), run(self)))
    monkeypatch.setattr(recorder_module, "RING", 16)
    monkeypatch.setattr(recorder_module, "_without_pictures", lambda value: value)
    with Recorder(tmp_path / "a.zip", every_step=True, backlog_bytes=200) as recorder:
        trace = run_episode(
            PonderingPolicy(), PlacedRobot(), PACE, clock=VirtualClock(), recorder=recorder
        )
        gate.set()
    assert len(trace.steps) == 24
    assert recorder.num_lost["ticks"] == 8 and recorder.num_lost["pictures"] > 0
    assert "lost 8 ticks" in recorder.words and "cannot be replayed" in recorder.words
    with opened(tmp_path / "a.zip") as journal:
        assert journal.about["lost"] == recorder.num_lost and len(journal.ticks) == 16
        with pytest.raises(RecordingError, match=r"\d+ parts were lost .*8 ticks.* the disk was"):
            replay(journal, PonderingPolicy())


def test_a_picture_that_was_lost_is_named(tmp_path):
    with JournalWriter(tmp_path / "a.zip") as writer:
        picture = np.zeros((64, 64, 3), np.uint8)
        fields = {"values": {"frame": picture, "state": np.ones(3, np.float32)}}
        writer.event("look", **{n: recorder_module._without_pictures(v) for n, v in fields.items()})
        writer.finish({"robot": {"low": [0.0]}})
    with opened(tmp_path / "a.zip") as journal:
        (look,) = journal.events
        assert journal.value(look["values"]["state"]).tolist() == [1, 1, 1]
        with pytest.raises(
            RecordingError, match=r"a\.zip: a picture was lost when it was recorded"
        ):
            journal.value(look["values"])


def test_a_thinker_that_nobody_watches_moves_no_robot(tmp_path):
    robot, policy = PlacedRobot(), PonderingPolicy()
    clock = VirtualClock()
    with (
        pytest.raises(ValueError, match=r"make it of recorder\.watch\(policy\)"),
        Recorder(tmp_path / "a.zip") as recorder,
    ):
        thinker = InlineThinker(policy, clock)
        run_episode(policy, robot, PACE, clock=clock, thinker=thinker, recorder=recorder)
    assert "send" not in robot.calls
    with (
        pytest.raises(ValueError, match=r"a recorder is of one episode"),
        Recorder(tmp_path / "b.zip") as recorder,
    ):
        for _ in range(2):
            run_episode(policy, PlacedRobot(), PACE, clock=clock, recorder=recorder)


def test_a_disk_that_is_full_stops_no_robot_and_is_told_at_the_end(tmp_path, monkeypatch):
    def full(self, rows):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(JournalWriter, "ticks", full)
    with (
        pytest.raises(OutputError, match=r"a\.zip: cannot be written: the disk is full"),
        Recorder(tmp_path / "a.zip") as recorder,
    ):
        trace = run_episode(
            PonderingPolicy(), PlacedRobot(), PACE, clock=VirtualClock(), recorder=recorder
        )
    assert len(trace.steps) == 24 and list(tmp_path.iterdir()) == []


def test_values_come_back_to_the_bit_and_each_stands_there_once(tmp_path):
    chance = np.random.default_rng(0)
    values = {
        "frame": chance.integers(0, 256, (37, 41, 3), np.uint8),
        "depth": chance.standard_normal((40, 50), np.float32),
        "odd": np.array([np.nan, -0.0, np.inf, 1e-45], np.float32),
        "none": np.zeros((40, 50), np.float32),
        "nothing": np.zeros((50, 40), np.float32),
        "tall": chance.integers(0, 256, (500, 1, 3), np.uint8)[::-1],
    }
    path = tmp_path / "a.zip"
    with JournalWriter(path) as writer:
        for _ in range(3):
            writer.event("look", values=values, at_s={"frame": 1.25}, name="x", flag=np.True_)
        writer.finish({"robot": {"low": [None]}})
    with opened(path) as journal:
        assert journal.ticks.shape == (0,)
        for event in journal.events:
            found = journal.value(event["values"])
            assert {n: v.tobytes() for n, v in found.items()} == {
                n: v.tobytes() for n, v in values.items()
            }
            assert all(found[n].dtype == v.dtype for n, v in values.items())
            assert (event["at_s"], event["name"], event["flag"]) == ({"frame": 1.25}, "x", True)
    names = zipfile.ZipFile(path).namelist()
    assert sum(name.startswith("values/") for name in names) == 4


@pytest.mark.parametrize("shape", [(1, 1, 3), (2, 1, 3), (1, 9, 3), (48, 64, 3)])
def test_pictures_are_pngs_that_others_read(shape):
    image = np.random.default_rng(1).integers(0, 256, shape, np.uint8)
    data = encode_png_quickly(image)
    assert np.array_equal(decode_png(data, 0), image), "Pillow reads it"


def test_damaged_journals_are_refused_by_name(tmp_path):
    path = tmp_path / "a.zip"
    record(path, PonderingPolicy(), robot=PlacedRobot())
    data = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}

    def written(changed):
        with zipfile.ZipFile(path, "w") as archive:
            for name, part in (parts | changed).items():
                if part is not None:
                    archive.writestr(name, part)

    about = json.loads(parts["journal.json"])
    for change, message in (
        (lambda: path.unlink(), "no such file"),
        (
            lambda: path.write_bytes(data[: len(data) // 2]),
            "no journal of an episode, or cut short",
        ),
        (lambda: written({"journal.json": None}), "no journal of a run"),
        (
            lambda: written({"journal.json": json.dumps(about | {"anchorvla journal": 2})}),
            "a journal of version 2, this program reads 1",
        ),
        (lambda: written({"events/000000.jsonl": b'{"kind": '}), "damaged"),
        (lambda: written({"ticks/000000.npy": b"no array"}), "damaged"),
    ):
        change()
        with pytest.raises(RecordingError, match=rf"a\.zip: {message}"):
            Journal(path)


def test_a_bit_that_flips_in_a_file_is_seen(policy, tmp_path):
    record(tmp_path / "a.zip", policy)
    data = bytearray((tmp_path / "a.zip").read_bytes())
    data[data.index(b"IDAT") + 300] ^= 1
    (tmp_path / "a.zip").write_bytes(data)
    with (
        opened(tmp_path / "a.zip") as journal,
        pytest.raises(RecordingError, match=r"a\.zip: damaged \(Bad CRC"),
    ):
        replay(journal, policy)


def test_no_journal_takes_the_place_of_another(tmp_path):
    for expected in ("touch-red-live-seed-0.zip", "touch-red-live-seed-0-2.zip"):
        path = free_path(tmp_path, "touch-red live, seed 0")
        assert path.name == expected
        record(path, PonderingPolicy(), robot=PlacedRobot())
    assert foreign(tmp_path) is None
    (tmp_path / "x.zip").write_bytes(b"PK somebody's")
    assert foreign(tmp_path) == f"x.zip is in it, which is not {JOURNAL.words}"
    with pytest.raises(OutputError, match=r"x\.zip: there is a file already"):
        Recorder(tmp_path / "x.zip")


def test_run_records_and_replay_compares(demo_bundle, tmp_path, capsys):
    bundle, folder, page = str(demo_bundle), tmp_path / "journals", tmp_path / "page.html"
    episode = str(EPISODES / "touch-red-1.npz")
    pace = ["--rate-hz", "1000", "--max-steps", "10"]
    line = ["run", bundle, "--episodes", episode, episode, *pace, "--record", str(folder)]
    assert main([*line, "--every-step"]) == 0
    assert "touch-red-1.zip, nothing lost; recording took 0." in capsys.readouterr().out
    journals = sorted(folder.iterdir())
    assert [path.name for path in journals] == ["touch-red-1-2.zip", "touch-red-1.zip"]
    words = ["replay", *map(str, journals), bundle]
    assert main([*words, "--report", str(page)]) == 0
    out = capsys.readouterr().out
    assert out.count("thoughts: all 2 bit for bit as recorded") == 2
    assert out.count("control ticks: all 10 bit for bit as recorded") == 2
    text = page.read_text()
    assert "Predicted against sent" in text and text.count("2 of 2 thoughts bit for bit") == 2
    assert text.count("<svg") == 8 and broken_promises(Page(text)) == []
    assert main(["replay", episode, bundle]) == 6
    assert (
        f"to see a policy on a recording: anchorvla run BUNDLE --episodes {episode}"
        in capsys.readouterr().err
    )
    assert main([*line[:-2], "--every-step"]) == 2
    assert "give --record too" in capsys.readouterr().err


def test_replay_on_another_policy_ends_with_the_first_difference(
    demo_bundle, policy, tmp_path, capsys
):
    record(tmp_path / "a.zip", policy)
    with opened(tmp_path / "a.zip") as journal:
        about, events = journal.about, journal.events
        events[1]["seed"] = 99
        ticks = journal.ticks
        with JournalWriter(tmp_path / "b.zip") as writer:
            for event in events:
                fields = {n: journal.value(v) for n, v in event.items() if n != "kind"}
                writer.event(event["kind"], **fields)
            writer.ticks(ticks)
            writer.finish({n: v for n, v in about.items() if n != "anchorvla journal"})
    assert main(["replay", str(tmp_path / "b.zip"), str(demo_bundle)]) == 1
    out = capsys.readouterr().out
    assert "thoughts: 6 of 6 differ" in out
    assert "first difference: thought 0, step 0, dimension 0" in out
    assert "first difference: tick 0, step 0, dimension 0" in out
