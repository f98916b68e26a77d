"""A policy with a store of pictures beside one without, and a model of what the former computes."""

from __future__ import annotations

import copy
from collections import Counter
from dataclasses import dataclass, field

import numpy as np
import pytest
from msgspec.structs import replace

import runtime
from runtime.declarations import Input, Output
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
from tests.simulation.faults import KINDS

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
EVENTS = {
    "act": 12, "frame": 6, "fault": 5, "see": 3, "latch": 3, "give": 2, "joints": 2, "task": 1,
    "start": 2, "refuse": 1, "probe": 1, "catch up": 1, "forget": 1,
    "fault in catching up": 2,
}  # fmt: skip
NUM_KINDS = sum(EVENTS.values())


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
