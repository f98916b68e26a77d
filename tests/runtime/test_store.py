"""A picture is computed once, whichever input shows it: a warm tick equals a cold one to the bit.

Two policies live through the same story. One has a store and is hit by faults, the other has none
and recomputes everything. What the first computes in a tick is compared with a model that knows the
rule alone: the last N pictures that were used are known, and no others.
"""

from __future__ import annotations

import contextlib
from collections import Counter

import numpy as np
import pytest
from msgspec.structs import replace

import runtime
from runtime.backends.onnxruntime import OnnxRuntimeBackend
from runtime.backends.tensorrt import TensorRTBackend
from runtime.functions import remembered
from runtime.functions.remembered import Places, Remembered
from runtime.inputs import History
from runtime.interpreter import Interpreter
from tests.families import golden_of, toy_graph, with_store, write_bundle
from tests.runtime.stand_ins.pictured import AGO, EVENTS, INPUTS, POOL, Cast
from tests.simulation import install, make_plan
from tests.simulation.faults import Faults, FaultyBackend

SIZES = (1, 3, 5, 20)
NUM_STORIES, NUM_EVENTS = 200, 24


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
