"""A picture is computed once, whichever input shows it: a warm tick equals a cold one to the bit.

Two policies live through the same story. One has a store and is hit by faults, the other has none
and recomputes everything. What the first computes in a tick is compared with a model that knows the
rule alone: the last N pictures that were used are known, and no others.
"""

from __future__ import annotations

import contextlib
import copy
from collections import Counter
from dataclasses import dataclass, field

import numpy as np
import pytest
from msgspec.structs import replace

import runtime
from runtime.backends.onnxruntime import OnnxRuntimeBackend
from runtime.backends.tensorrt import TensorRTBackend
from runtime.declarations import Input, Output
from runtime.functions import remembered
from runtime.functions.remembered import Places, Remembered
from runtime.inputs import History
from runtime.interpreter import Interpreter
from tests.families import (
    CAMERA,
    IMAGE,
    JOINTS,
    NOISE,
    VECTOR,
    expected,
    golden_of,
    toy_graph,
    with_store,
    write_bundle,
)
from tests.simulation import install, make_plan
from tests.simulation.faults import KINDS, Faults, FaultyBackend

AGO = {"ago_4": 4, "ago_2": 2}
LATCHES = ("first", "key_0", "key_1", "key_2", "key_3")
PICTURES = ("first", *AGO, "camera", "key_0", "key_1", "key_2", "key_3")
INPUTS = {
    "first": Input(**IMAGE, source="latch", of="camera", pace="episode"),
    **{
        n: Input(**IMAGE, source="delay", of="camera", steps=s, pace="tick") for n, s in AGO.items()
    },
    "camera": CAMERA,
    **{n: Input(**IMAGE, source="latch", of="camera", pace="event") for n in LATCHES[1:]},
    "joints": JOINTS,
    "task": Input(**{**VECTOR, "source": "operator"}, pace="event"),
    "latent": Input(**NOISE),
}
POOL = [golden_of({"x": CAMERA}, 100 + seed)["x"] for seed in range(14)]
"""All pictures, none of which is a golden one. Three begin alike, as behind a black border."""
for picture in POOL[1:3]:
    picture[:-1] = POOL[0][:-1]
SIZES = (1, 3, 5, 20)
EVENTS = {
    "act": 12, "frame": 6, "fault": 5, "see": 3, "latch": 3, "give": 2, "joints": 2, "task": 1,
    "start": 2, "refuse": 1, "probe": 1, "catch up": 1, "forget": 1,
    "fault in catching up": 2,
}  # fmt: skip
NUM_KINDS = sum(EVENTS.values())
NUM_STORIES, NUM_EVENTS = 200, 24


@dataclass
class Model:
    """What a policy with a store of `count` pictures has to compute."""

    count: int
    known: list[int] = field(default_factory=list)
    """Pictures, the last used last."""
    values: dict[str, int] = field(default_factory=dict)
    """The picture of every input."""
    valid: set[str] = field(default_factory=set)
    """Inputs that kept their picture since its tensors were made."""
    afresh: set[str] = field(default_factory=set)

    def set(self, name, picture):
        if self.values.get(name) != picture:
            self.valid.discard(name)
        self.values[name] = picture

    def tick(self, shown):
        """What is computed for these pictures, and what is copied, by input."""
        computed, copied, leaders = [], [], set()
        for name, picture in shown.items():
            self.set(name, picture)
        for name in PICTURES:
            picture = shown[name]
            if name in self.valid:
                continue
            twins = [other for other in computed if shown[other] == picture]
            if name in self.afresh or not (twins or picture in self.known):
                computed.append(name)
                continue
            copied.append(name)
            leaders |= {*twins[:1]}
            if not twins:
                self.use(picture)
        for name in computed:
            self.use(shown[name])
        self.valid = {*PICTURES}
        self.afresh -= {*computed}
        return computed, copied, leaders

    def use(self, picture):
        if picture in self.known:
            self.known.remove(picture)
        self.known = [*self.known, picture][-self.count :]

    def forget(self):
        self.known, self.valid, self.afresh = [], set(), {*PICTURES}

    def fail(self, shown, stage, kind, *, is_undone=True):
        """A tick fails at a stage, or at its end over a NaN: what it touched is lost."""
        before = copy.deepcopy(self)
        computed, copied, leaders = self.tick(shown)
        if kind in ("nan", "one nan"):
            touched = {*computed, *copied}
            before.known = [picture for picture in before.known if picture in self.known]
        else:
            reached, is_second = self._reached(computed, leaders, stage)
            touched = {*copied, *reached}
        if not is_undone:  # what was looked up was used, and what others would copy is done
            done = leaders if is_second else set()
            before.valid |= done
            touched -= done
            twins = {shown[name] for name in leaders}
            for name in copied:
                if shown[name] not in twins:
                    before.use(shown[name])
        vars(self).update(vars(before))
        self.valid -= touched

    @staticmethod
    def _reached(computed, leaders, stage):
        """Inputs of which something ran, host functions first, and whether those were done before
        that others copy."""
        reached = []
        first = [name for name in computed if name in leaders]
        rest = [name for name in computed if name not in leaders]
        for group in (first, [*rest, "latent", "sum"]):
            for name in group:
                reached.append(name)
                if stage == f"{name}_rows":
                    return reached, group is not first
            if stage in ("sum" in group and "sum", *(f"{name}_mean" for name in group)):
                return reached, group is not first
        raise AssertionError(stage)

    def probed(self):
        """All was computed of another observation, and that was undone."""
        self.known, self.valid = [], set()


class Story:
    """What happens to both policies, and to the model."""

    def __init__(self, warm, cold, faults, seed):
        self.warm, self.cold, self.faults = warm, cold, faults
        (store,) = warm.graph.stores.values()
        self.model = Model(len(store.entries))
        self.random = np.random.default_rng(seed)
        self.counts = Counter()
        self.on_forget()
        self.on_start()

    def happen(self):
        event = str(self.random.choice(list(EVENTS), p=np.array([*EVENTS.values()]) / NUM_KINDS))
        self.counts[event] += 1
        getattr(self, f"on_{event.replace(' ', '_')}")()

    def on_start(self):
        self.task = self.random.standard_normal(3).astype(np.float32)
        self.latched = {n: self.pick() for n in LATCHES if self.random.random() < 0.2}
        given = {name: POOL[number].copy() for name, number in self.latched.items()}
        for name, number in self.latched.items():
            self.model.set(name, number)
        seed = int(self.random.integers(100))
        self.episodes = [
            policy.start(seed=seed, task=self.task, **given) for policy in (self.warm, self.cold)
        ]
        self.pending, self.past, self.has_acted = set(), [], False
        self.frame, self.joints = self.pick(), np.zeros(3, np.float32)
        self.spared = [0, 0]

    def on_act(self):
        shown = self.next_shown()
        computed, copied, _ = self.model.tick(shown)
        answer = self.episodes[0].act(self.seen())
        self.cold.forget()
        want = self.episodes[1].act(self.seen())
        assert answer.actions.tobytes() == want.actions.tobytes()
        for name, leaf in answer.leaves.items():
            assert leaf.tobytes() == want.leaves[name].tobytes(), name
        for name, number in shown.items():
            got = answer.leaves[f"{name}_mean"]
            np.testing.assert_allclose(got, expected({name: POOL[number]}), atol=1e-5)
        self.check(computed, copied)
        self.latched, self.has_acted = {name: shown[name] for name in LATCHES}, True
        self.past.append(self.frame)
        self.pending.clear()

    def on_fault(self):
        """At a stage of a picture that has to be computed, or behind them."""
        shown = self.next_shown()
        stages = ["latent_rows", "latent_mean", "sum"]
        for name in copy.deepcopy(self.model).tick(shown)[0]:
            stages += [f"{name}_rows", f"{name}_mean"]
        stage, kind = str(self.random.choice(stages)), str(self.random.choice(KINDS))
        self.faults.arm(stage, kind)
        with pytest.raises(runtime.EngineError):
            self.episodes[0].act(self.seen())
        assert not self.faults.is_armed, stage
        self.model.fail(shown, stage, kind)

    def on_fault_in_catching_up(self):
        """The same, where nothing is undone."""
        computed = copy.deepcopy(self.model).tick(self.model.values)[0] if self.has_acted else ()
        if computed:
            stage = f"{self.random.choice(computed)}_{self.random.choice(['rows', 'mean'])}"
            self.faults.arm(stage, str(self.random.choice(["before", "after", "half"])))
            with pytest.raises(runtime.EngineError):
                self.warm.catch_up()
            self.model.fail(self.model.values, stage, "", is_undone=False)

    def on_see(self):
        for _ in range(int(self.random.integers(1, 4))):
            self.frame = self.pick()
            for episode in self.episodes:
                episode.see({"camera": POOL[self.frame].copy()})
            self.past.append(self.frame)
            for name in LATCHES:
                self.latched.setdefault(name, self.frame)
                self.model.set(name, self.latched[name])

    def on_latch(self):
        name = str(self.random.choice(LATCHES))
        for episode in self.episodes:
            episode.latch(name)
        self.pending.add(name)

    def on_give(self):
        name, number = str(self.random.choice(LATCHES)), self.pick()
        for episode in self.episodes:
            episode.give(**{name: POOL[number].copy()})
        self.latched[name] = number
        self.model.set(name, number)
        self.pending.discard(name)

    def on_task(self):
        task = self.random.standard_normal(3).astype(np.float32)
        for episode in self.episodes:
            episode.give(task=task)

    def on_joints(self):
        self.joints = self.joints + np.float32(0.5)

    def on_frame(self):
        self.frame = self.pick()

    def on_forget(self):
        self.warm.forget()
        self.model.forget()

    def on_probe(self):
        assert self.warm.probe().passed
        self.model.probed()

    def on_catch_up(self):
        self.warm.catch_up()
        if self.has_acted:
            computed, copied, _ = self.model.tick(self.model.values)
            self.check(computed, copied)

    def on_refuse(self):
        flat = np.full((8, 8, 3), 9, np.uint8)
        for call in (
            lambda: self.episodes[0].act({**self.seen(), "camera": flat}),
            lambda: self.episodes[0].see({"camera": flat}),
            lambda: self.episodes[0].see({"joints": self.joints}),
            lambda: self.episodes[0].see({"camera": POOL[0], "ago_2": POOL[1]}),
            lambda: self.episodes[0].give(key_1=flat),
        ):
            with pytest.raises(runtime.ObservationError):
                call()

    def pick(self):
        return int(self.random.integers(len(POOL)))

    def seen(self):
        return {"camera": POOL[self.frame].copy(), "joints": self.joints}

    def next_shown(self):
        """What every input will show in the next tick."""
        steps = [*self.past, self.frame]
        shown = {name: self.latched.get(name, self.frame) for name in LATCHES}
        shown |= dict.fromkeys(self.pending, self.frame)
        shown |= {name: steps[max(0, len(steps) - 1 - n)] for name, n in AGO.items()}
        return {name: {**shown, "camera": self.frame}[name] for name in PICTURES}

    def check(self, computed, copied):
        ran = self.warm.interpreter.last_run.keys()
        for part in ("rows", "mean"):
            assert [name for name in PICTURES if f"{name}_{part}" in ran] == computed
        self.spared = [self.spared[0] + len(copied), self.spared[1] + len(computed)]
        stats = self.episodes[0].stats.stores["averages"]
        assert [stats.hits, stats.misses] == self.spared
        assert stats.entries == len(self.model.known) <= stats.most_entries
        assert stats.num_bytes == stats.most_entries * 2 * 3 * 4
        assert stats.value_bytes == len(self.model.known) * 8 * 8 * 3
        self.counts["copied"] += len(copied)
        self.counts["computed"] += len(computed)


class Cast:
    """Policies with stores of every size, and one without."""

    def __init__(self, folder, sizes, make, faults):
        graph, golden = toy_graph(INPUTS), golden_of(INPUTS)
        outputs = {"actions": graph.outputs["actions"]}
        outputs |= {f"{name}_mean": Output(every=1) for name in PICTURES}
        graph = replace(graph, outputs=outputs)
        paths = {
            size: write_bundle(folder / str(size), with_store(graph, size, PICTURES), golden)
            for size in sizes
        }
        self.faults = faults
        self.warm = {size: runtime.load(path, backend=make) for size, path in paths.items()}
        self.cold = runtime.load(write_bundle(folder / "cold", graph, golden))

    def story(self, size, seed):
        # Which of several loaded policies faults are meant for.
        self.faults.graph = self.warm[size].graph
        return Story(self.warm[size], self.cold, self.faults, seed)

    def close(self):
        for policy in (*self.warm.values(), self.cold):
            policy.close()


@pytest.fixture(scope="module")
def players(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        faults = Faults(patch)
        made = Cast(
            tmp_path_factory.mktemp("stores"),
            SIZES,
            lambda _: FaultyBackend(OnnxRuntimeBackend(1), faults),
            faults,
        )
        yield made
        made.close()


def test_a_warm_tick_is_a_cold_one_and_computes_what_no_input_has_shown(players):
    counts = Counter()
    for seed in range(NUM_STORIES):
        story = players.story(SIZES[seed % len(SIZES)], seed)
        for _ in range(NUM_EVENTS):
            story.happen()
        counts += story.counts
    assert min(counts[event] for event in EVENTS) > 80, counts
    assert counts["copied"] > 1000 and counts["computed"] > 1000, counts


def is_caught(players):
    """Whether one of some stories notices what was planted."""
    for seed in range(60):
        try:
            story = players.story(SIZES[seed % len(SIZES)], seed)
            for _ in range(NUM_EVENTS):
                story.happen()
        except (AssertionError, runtime.EngineError, pytest.fail.Exception):
            players.faults.disarm()
            return True
    return False


def no_collision_matters(patch):
    patch.setattr(remembered, "fingerprint", lambda value: 0)


def test_a_collision_of_fingerprints_gives_no_wrong_result(players, monkeypatch):
    no_collision_matters(monkeypatch)
    assert not is_caught(players)


def believe_fingerprints(patch):
    patch.setattr(remembered, "fingerprint", lambda value: int(value.reshape(-1)[0]) % 4)
    patch.setattr(remembered, "same", lambda one, other: True)


def be_one_step_late(patch):
    def delayed(self):
        for name, delay in self._delays.items():
            past = self.past[delay.of]
            yield name, past[-min(delay.steps, len(past))]

    patch.setattr(History, "delayed", delayed)


def keep_one_step_too_few(patch):
    keep = History.keep

    def kept(self, values):
        keep(self, values)
        self.past = {name: past[-4:] for name, past in self.past.items()}

    patch.setattr(History, "keep", kept)


def enter_too_early(patch):
    look_up = Interpreter._look_up

    def looked_up(self, *arguments):
        due = look_up(self, *arguments)
        for cone, name in due.computed.items():
            self._remember_result(cone, name)
        return due

    patch.setattr(Interpreter, "_look_up", looked_up)


def evict_the_last_used(patch):
    @contextlib.contextmanager
    def renewed(self, value):
        place = next((p for p in range(self._count) if p not in self._held), None)
        if place is None:
            place = next(reversed(self._held))
            del self._held[place]
        yield place
        self._held[place] = Remembered(value, remembered.fingerprint(value))

    patch.setattr(Places, "renewed", renewed)


def evict_the_first_entered(patch):
    find = Places.find

    def found(self, value):
        held = self._held.copy()
        place = find(self, value)
        self._held = held
        return place

    patch.setattr(Places, "find", found)


def forget_the_wrong_place(patch):
    @contextlib.contextmanager
    def renewed(self, value):
        yield (place := len(self._held) % self._count)
        self._held[place] = Remembered(value, remembered.fingerprint(value))

    patch.setattr(Places, "renewed", renewed)


def go_on_from_inside(patch):
    """The last stage of a cone that was copied runs on what another picture left there."""
    look_up = Interpreter._look_up

    def looked_up(self, *arguments):
        due = look_up(self, *arguments)
        due.stages |= {cone.stages[-1] for cone in due.copied}
        return due

    patch.setattr(Interpreter, "_look_up", looked_up)


def believe_failed_ticks(patch):
    patch.setattr(Places, "remember", lambda self: lambda: None)


def bring_back_what_was_evicted(patch):
    def remember(self):
        before = self._held.copy()
        return lambda: setattr(self, "_held", before)

    patch.setattr(Places, "remember", remember)


def look_up_after_forgetting(patch):
    forget = Interpreter.forget

    def forgot(self):
        forget(self)
        self._afresh = frozenset()

    patch.setattr(Interpreter, "forget", forgot)


def keep_what_was_forgotten(patch):
    patch.setattr(Places, "forget", lambda self: None)


def count_as_seen_at_once(patch):
    look_up = Interpreter._look_up

    def looked_up(self, *arguments):
        due = look_up(self, *arguments)
        for i in (i for cone in due.copied for i in cone.stages):
            self._seen[i] = self._versions[self._needs[i]]
        return due

    patch.setattr(Interpreter, "_look_up", looked_up)


def copy_before_computing(patch):
    look_up = Interpreter._look_up

    def looked_up(self, *arguments):
        due = look_up(self, *arguments)
        for leader, follower in due.twins:
            self._copy_all(leader.tensors, follower.tensors)
        due.twins.clear()
        return due

    patch.setattr(Interpreter, "_look_up", looked_up)


def keep_the_history_of_failed_ticks(patch):
    def keep(self, values):
        for name, past in self.past.items():
            past = list(past) if isinstance(past, tuple) else past
            past.append(values[name])
            self.past[name] = past

    patch.setattr(History, "keep", keep)


@pytest.mark.parametrize(
    "plant",
    [
        believe_fingerprints, be_one_step_late, keep_one_step_too_few, enter_too_early,
        evict_the_last_used, evict_the_first_entered, forget_the_wrong_place, go_on_from_inside,
        believe_failed_ticks, bring_back_what_was_evicted, look_up_after_forgetting,
        keep_what_was_forgotten, count_as_seen_at_once, copy_before_computing,
        keep_the_history_of_failed_ticks,
    ],
)  # fmt: skip
def test_what_is_planted_is_caught(players, monkeypatch, plant):
    plant(monkeypatch)
    assert is_caught(players)


def test_every_kind_of_tick_was_met_before_the_first_episode(tmp_path, monkeypatch):
    """On a GPU it is replayed then, and no stage is enqueued by itself."""
    world = install(monkeypatch)
    world.is_verified = True
    pictures = ("camera", "first", *AGO)
    inputs = {name: INPUTS[name] for name in (*pictures, "joints", "latent")}
    inputs |= {name: replace(INPUTS[name], steps=steps // 2) for name, steps in AGO.items()}
    graph = with_store(toy_graph(inputs), 8, pictures)
    path = write_bundle(tmp_path / "toy", graph, golden_of(inputs))
    with runtime.load(path, backend=lambda _: TensorRTBackend(make_plan)) as policy:
        episode = policy.start()
        numbers, ran = iter(range(14)), []
        for pause in (0, 2, 2, 0, 0):
            for _ in range(pause):
                episode.see({"camera": POOL[next(numbers) if pause == 2 and len(ran) == 1 else 0]})
            world.calls.clear()
            episode.act({"camera": POOL[next(numbers)], "joints": np.full(3, len(ran))})
            ran.append({n for n in pictures if f"{n}_mean" in episode.stats.last_s})
            assert "execute_async_v3" not in world.calls, len(ran)
    assert ran == [{"camera"}, {"camera", "ago_4", "ago_2"}, {"camera"}, {"camera"}, {"camera"}]


@pytest.mark.parametrize("size", [1, 4])
def test_the_same_on_a_gpu(tmp_path, monkeypatch, size):
    world = install(monkeypatch)
    world.is_verified = True
    faults = Faults(monkeypatch)
    made = Cast(
        tmp_path, [size], lambda _: FaultyBackend(TensorRTBackend(make_plan), faults, world), faults
    )
    for seed in range(12):
        story = made.story(size, 1000 + seed)
        for _ in range(NUM_EVENTS):
            story.happen()
    assert sum(kind == "across" for kind, _, _ in world.copies) > 200
    failed = 0
    for number in range(60):
        calls = "memcpy_dtod_async", "synchronize", len(world.calls) + int(number / 3)
        story.on_frame()
        world.refuse = calls[number % 3]
        for _ in range(2):  # it fails or not, and then goes on
            try:
                got = story.episodes[0].act(story.seen()).actions
            except runtime.EngineError:
                failed += 1
                continue
            finally:
                world.refuse = None
            made.cold.forget()
            assert got.tobytes() == story.episodes[1].act(story.seen()).actions.tobytes()
    assert failed >= 40
    made.close()
    assert not world.violations
    assert not +world.alive
