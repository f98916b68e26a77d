"""A failed tick and a refused value leave no trace: what comes after equals a cold run to the bit.

Two policies live through the same story. One is hit by faults at every stage and by values that
must be refused, and it is probed in between; the other never hears of those and recomputes
everything at every tick.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
from collections import Counter
from dataclasses import dataclass, field

import numpy as np
import pytest

import runtime
from runtime.anchor import Every, First, Kinematic, Semantic
from runtime.backends.onnxruntime import OnnxRuntimeBackend
from runtime.backends.tensorrt import TensorRTBackend
from runtime.interpreter import NEVER, Interpreter
from tests.simulation import install, make_plan
from tests.simulation.faults import KINDS, Faults, FaultyBackend

INSTRUCTIONS = ("reach the green marker", "open the drawer", "push the puck to the marker")
BIG = np.random.default_rng(0).integers(0, 255, (480, 640, 3), dtype=np.uint8)
REFUSED = {
    "image size": {"frame": BIG},
    "image type": {"frame": np.zeros((112, 112, 3))},
    "image list": {"frame": [[1]]},
    "flat image": {"frame": np.full((112, 112, 3), 9, np.uint8)},
    "state shape": {"state": np.zeros(7)},
    "state nan": {"state": np.array([0, np.nan, 0, 0])},
    "state dict": {"state": {"q": 1}},
    "state too large": {"state": np.full(4, 1e39)},
    "noise list": {"noise": [[0.0] * 4] * 10},
    "noise type": {"noise": np.zeros((10, 4), int)},
    "noise shape": {"noise": np.zeros((4, 10))},
    "noise too large": {"noise": np.full((10, 4), 1e39)},
}


@dataclass
class Moody:
    """An anchor policy of a user: it has a memory, and it fails when it is told to."""

    seen: list[float] = field(default_factory=list)
    fails: bool = False

    def wants(self, tick):
        self.seen.append(float(tick.observation["state"][0]))
        with pytest.raises(ValueError, match="read-only"):
            tick.observation["state"][:] = 9
        if self.fails:
            raise RuntimeError("an anchor policy of the user failed")
        return len(self.seen) % 3 == 0


ANCHOR_POLICIES = {
    "first": First,
    "every": lambda: Every(2),
    "kinematic": lambda: Kinematic(slow_step=10.0),
    "semantic": lambda: Semantic(1.1),
    "moody": Moody,
}


class Story:
    """Drives both policies alike and compares them after everything that was no failure."""

    def __init__(self, faulty, clean, faults, image, seed):
        self.faulty, self.clean, self.faults, self.image = faulty, clean, faults, image
        self.random = np.random.default_rng(seed)
        self.counts = Counter()
        self.state = np.array([0.0, 0.6, 0.2, 1.0], np.float32)
        self.probes = itertools.cycle(["none", "probe", "none", "probe and catch up"])
        self.policies = itertools.cycle(ANCHOR_POLICIES)
        self.start()

    def start(self):
        arguments = {
            "anchor": self._picture(),
            "instruction": self._text(),
            "seed": int(self.random.integers(5)),
        }
        name = next(self.policies)
        self.episodes = [
            policy.start(**arguments, anchor_policy=ANCHOR_POLICIES[name]())
            for policy in (self.faulty, self.clean)
        ]
        self.counts[f"episodes, {name}"] += 1
        self.frame = self._picture()

    def prepare(self):
        """Something makes stages stale, or nothing does."""
        match self.random.choice(["say", "anchor", "forget", "frame", "state", "all", "none"]):
            case "say":
                text = self._text()
                for episode in self.episodes:
                    episode.say(text)
            case "anchor":
                picture = self._picture()
                for episode in self.episodes:
                    episode.give(anchor=picture)
            case "forget":
                self.faulty.forget()
            case "frame":
                self.frame = self._picture()
            case "state":
                self._move()
            case "all":
                self.faulty.forget()
                self.frame = self._picture()
                self._move()
        self.probe(next(self.probes))

    def probe(self, how):
        """Somebody else asks for the golden tick; it is right, and the episode does not notice."""
        if how == "none":
            return
        stats = self.episodes[0].stats
        assert self.faulty.probe().passed
        assert self.episodes[0].stats == stats
        if how == "probe and catch up":
            self.faulty.catch_up()
        self.counts[how] += 1

    def act(self, noise=None):
        """A tick that nothing disturbs: both give the same bits."""
        chunk = self.episodes[0].act(self._seen(noise)).actions
        self._compare(chunk, noise)
        self.counts["good acts"] += 1

    def act_with_fault(self, stage, kind):
        """It fails and leaves no trace, or it was right."""
        fired = len(self.faults.fired)
        self.faults.arm(stage, kind)
        try:
            chunk = self.episodes[0].act({"frame": self.frame, "state": self.state}).actions
        except runtime.EngineError:
            self.counts[f"failed, {kind}"] += 1
        else:
            self._compare(chunk, None)
            self.counts["faults that met nothing"] += 1
        self.faults.disarm()
        return len(self.faults.fired) > fired

    def refuse(self, name):
        good = {"frame": self._picture(), "state": self.state + np.float32(0.5)}
        with pytest.raises(runtime.ObservationError):
            self.episodes[0].act({**good, **REFUSED[name]})
        for call in (
            lambda: self.episodes[0].give(anchor=BIG),
            lambda: self.episodes[0].say("x" * 10_000),
            lambda: self.faulty.start(anchor=BIG, instruction="open the drawer"),
        ):
            with pytest.raises(runtime.ObservationError):
                call()
        self.counts["refused values"] += 4

    def fail_in_the_anchor_policy(self):
        moody = self.episodes[0]._anchor_policies["anchor"]
        if isinstance(moody, Moody):
            moody.fails = True
            with pytest.raises(RuntimeError, match="of the user failed"):
                self.episodes[0].act(
                    {"frame": self._picture(), "state": self.state + np.float32(0.5)}
                )
            self.episodes[0]._anchor_policies["anchor"].fails = False
            self.counts["failed, anchor policy"] += 1

    def _compare(self, chunk, noise):
        self.clean.forget()
        want = self.episodes[1].act(self._seen(noise)).actions
        assert chunk.tobytes() == want.tobytes(), f"differs from a cold run after {self.counts}"
        one, other = self.episodes
        assert (one.step, one.stats.repeated_frames) == (other.step, other.stats.repeated_frames)

    def _seen(self, noise):
        drawn = {} if noise is None else {"noise": noise}
        return {"frame": self.frame, "state": self.state, **drawn}

    def _picture(self):
        return self.image(int(self.random.integers(1000)))

    def _text(self):
        return str(self.random.choice(INSTRUCTIONS))

    def _move(self):
        self.state = self.state + self.random.normal(0, 0.02, 4).astype(np.float32)


def live_through(story, num_rounds):
    """A good tick after every fault; each stage and kind comes in turn."""
    graph = story.faulty.graph
    stages = [s.name for s in graph.stages if graph.stage_dependencies[s.name]]
    faults = itertools.cycle(itertools.product(stages, KINDS))
    refused = itertools.cycle(REFUSED)
    met = set()
    for number in range(num_rounds):
        stage, kind = next(faults)
        story.prepare()
        if story.act_with_fault(stage, kind):
            met.add(stage)
        if number % 3 == 0:
            story.refuse(next(refused))
        if number % 4 == 0:
            story.fail_in_the_anchor_policy()
        noise = np.full((10, 4), 0.5, np.float32) if number % 5 == 0 else None
        story.act(noise)
        if number % 7 == 6:
            story.start()
    return met, set(stages)


def load_pair(kind, bundle, monkeypatch):
    """The same bundle with faults on `kind` of backend, and without on ONNX Runtime."""
    clean = runtime.load(bundle)
    world = install(monkeypatch) if kind == "simulated GPU" else None
    inner = OnnxRuntimeBackend
    if world:
        world.is_verified = True
        inner = functools.partial(TensorRTBackend, make_plan)
    faults = Faults(monkeypatch)
    make_backend = lambda _: FaultyBackend(inner(), faults, world)  # noqa: E731
    return runtime.load(bundle, backend=make_backend), clean, faults, world


@pytest.fixture(params=["onnxruntime", "simulated GPU"])
def make_story(request, demo_bundle, monkeypatch, image):
    with contextlib.ExitStack() as stack:

        def make(seed):
            faulty, clean, faults, world = load_pair(request.param, demo_bundle, monkeypatch)
            stack.enter_context(faulty)
            stack.enter_context(clean)
            if world:
                stack.callback(lambda: world.violations and pytest.fail(str(world.violations)))
            return Story(faulty, clean, faults, image, seed)

        yield make


@pytest.mark.parametrize("num_rounds", [190, pytest.param(1200, marks=pytest.mark.full)])
def test_after_a_failure_at_any_stage_the_next_tick_equals_a_cold_one(
    make_story, num_rounds, capsys
):
    story = make_story(num_rounds)
    met, stages = live_through(story, num_rounds)
    with capsys.disabled():
        print(f"\n{num_rounds} faults offered, 0 ticks differ: {dict(story.counts)}")
    assert story.counts["good acts"] == num_rounds
    assert sum(n for what, n in story.counts.items() if what.startswith("failed")) > num_rounds / 4
    assert len(met) > 0.8 * len(stages)


@contextlib.contextmanager
def nothing_undone(self):
    yield


@contextlib.contextmanager
def buffers_believed(self):
    """Inputs go back, but what ran inside is taken for current."""
    inputs = self.values.copy(), self._versions.copy()
    try:
        yield
    except BaseException:
        self.values, self._versions = inputs
        raise


@contextlib.contextmanager
def inputs_kept(self):
    """What ran is run again, but on the inputs of the failed tick."""
    seen = self._seen.copy()
    try:
        yield
    except BaseException:
        self._seen = [
            now if now == before else NEVER for now, before in zip(self._seen, seen, strict=True)
        ]
        raise


@pytest.mark.parametrize("planted", [nothing_undone, buffers_believed, inputs_kept])
def test_a_planted_violation_is_caught(make_story, monkeypatch, planted):
    monkeypatch.setattr(Interpreter, "transaction", planted)
    story = make_story(0)
    with pytest.raises((AssertionError, runtime.EngineError)):
        live_through(story, 190)


@pytest.mark.parametrize("planted", [nothing_undone, inputs_kept])
def test_a_probe_that_leaves_a_trace_is_caught(make_story, monkeypatch, planted):
    @contextlib.contextmanager
    def aside(self):
        with contextlib.suppress(ZeroDivisionError), planted(self):
            yield
            raise ZeroDivisionError

    monkeypatch.setattr(Interpreter, "aside", aside)
    monkeypatch.setattr(Story, "probe", lambda self, how: how == "none" or self.faulty.probe())
    story = make_story(0)
    with pytest.raises((AssertionError, runtime.EngineError)):
        live_through(story, 190)


def test_a_failed_tick_is_counted_and_shows_in_no_other_number(policy, image):
    episode = policy.start(anchor=image(1), instruction="open the drawer", anchor_policy=Moody())
    state = np.zeros(4, np.float32)
    episode.act({"frame": image(2), "state": state})
    before = episode.stats
    episode._anchor_policies["anchor"].fails = True
    with pytest.raises(RuntimeError):
        episode.act({"frame": image(2), "state": state})
    after = episode.stats
    assert (before.failed_ticks, after.failed_ticks) == (0, 1)
    assert (before.num_runs, before.total_s, before.repeated_frames) == (
        after.num_runs, after.total_s, after.repeated_frames,
    )  # fmt: skip
    assert episode.step == 1


def test_what_a_failed_tick_did_not_touch_is_not_computed_again(policy, image):
    episode = policy.start(anchor=image(1), instruction="open the drawer", anchor_policy=Moody())
    episode.act({"frame": image(2), "state": np.zeros(4, np.float32)})
    episode._anchor_policies["anchor"].fails = True
    with pytest.raises(RuntimeError):
        episode.act({"frame": image(3), "state": np.ones(4, np.float32)})
    episode._anchor_policies["anchor"].fails = False
    episode.act({"frame": image(2), "state": np.zeros(4, np.float32)})
    steps = {f"denoise_{n}" for n in range(10)}
    assert set(episode.stats.last_s) == {"x_0", *steps, "denoised_actions", "actions"}
