"""A warm policy beside one that recomputes everything, driven alike, whatever the policy.

What should run is worked out from the manifest's JSON alone, by walking bytes forward from the
changed inputs, with no code of `runtime.graph`.
"""

import copy
import json
from pathlib import Path

import numpy as np
import pytest

import runtime
from runtime.errors import EngineError
from tests.runtime.test_keyframes import Server

CONE = ("patches", "vision")
"""What the stages are called that make tokens of a picture, behind its name."""
INSTRUCTIONS = ("reach the green marker", "open the drawer", "push the puck to the marker")


class Expectation:
    """Which stages a set of changed inputs reaches, and which of them a tick needs."""

    def __init__(self, bundle: Path) -> None:
        self.graph = json.loads((bundle / "manifest.json").read_text())["graph"]
        memories = [given["memory"] for given in self.graph["inputs"].values() if "memory" in given]
        due = {next(iter(self.graph["outputs"])), *(memory["output"] for memory in memories)}
        self.needed = set().union(*map(self._ancestors, due))
        self.leaves = {n: self._ancestors(n) - self.needed for n in self.graph["outputs"]}
        """Of each output, stages that run if somebody asks for it, and for no action."""
        for name in due:
            del self.leaves[name]

    def stages(self, changed: set[str]) -> set[str]:
        """Of a tick that asks for no leaf."""
        return self.reached(changed) & self.needed

    def reached(self, changed: set[str]) -> set[str]:
        dirty_memory: list[tuple[str, int, int]] = []
        dirty: set[str] = set()
        for stage in self.graph["stages"]:
            sources = stage.get("inputs", {}).values()
            touched = any(
                s in changed or any(self._overlap(s, span) for span in dirty_memory)
                for s in sources
            )
            if touched:
                dirty.add(stage["name"])
                dirty_memory += [self._span(t) for t in stage["outputs"].values()]
        return dirty

    def _ancestors(self, leaf: str) -> set[str]:
        wanted, found = [leaf], set()
        while wanted:
            tensor = wanted.pop()
            for stage in self.graph["stages"]:
                if stage["name"] in found:
                    continue
                if any(self._overlap(tensor, self._span(t)) for t in stage["outputs"].values()):
                    found.add(stage["name"])
                    wanted += [
                        s for s in stage.get("inputs", {}).values() if s in self.graph["tensors"]
                    ]
        return found

    def _span(self, name: str) -> tuple[str, int, int]:
        size, offset = int(np.prod(self.graph["tensors"][name]["shape"])), 0
        while part := self.graph["tensors"][name].get("part_of"):
            name, offset = part[0], offset + part[1]
        return name, offset, offset + size

    def _overlap(self, name: str, span: tuple[str, int, int]) -> bool:
        if name not in self.graph["tensors"]:
            return False
        root, start, stop = self._span(name)
        return root == span[0] and start < span[2] and span[1] < stop


def redone(bundle, seen, changed, other) -> set[str]:
    """Stages of a tick in which one input changed; behind it there is nothing left to do.

    Args:
        seen: an observation.
        changed: an input of it, or the instruction.
        other: an observation that has it otherwise.
    """
    with runtime.load(bundle) as policy, policy.start(instruction=INSTRUCTIONS[0]) as episode:
        episode.act(seen)
        if changed == "instruction":
            episode.say(INSTRUCTIONS[1])
        now = seen | {name: other[name] for name in seen if name == changed}
        episode.act(now)
        found = set(episode.stats.last_s)
        episode.act(now)
        assert not episode.stats.last_s
    return found


class Remembered:
    """Which pictures a store holds, while none has to make room for another: those that some member
    computed, be it before in the same tick. After `forget` every member computes once, whatever is
    there."""

    def __init__(self, graph) -> None:
        (self.store,) = graph["stores"].values() or ({"members": []},)
        self.pictures = [tensors[0].removesuffix("_tokens") for tensors in self.store["members"]]
        self.waiting, self.known = set(self.pictures), set()

    def spared(self, changed: set[str], values) -> set[str]:
        """Pictures that nothing runs for; to be called once a tick that went well."""
        assert len(self.known) < len(self.store["entries"])
        found = set()
        for name in self.pictures:
            if name in changed:
                if name not in self.waiting and values[name] in self.known:
                    found.add(name)
                self.waiting.discard(name)
                self.known.add(values[name])
        return found


class Kept:
    """What a policy keeps of its own events, told again: see tests/runtime/test_keyframes.py."""

    def __init__(self, declared) -> None:
        self.name, given = next((n, i) for n, i in declared.items() if "memory" in i)
        memory = given["memory"]
        self.slots, self.output = memory["slots"], memory["output"]
        self.camera = declared[self.slots[0]]["of"]
        self.nothing = np.zeros(declared[self.slots[0]]["shape"], np.uint8)
        self.server = Server(*(memory[n] for n in ("threshold", "least_offset", "nms_window")),
                             memory["cooldown"])  # fmt: skip
        self.bank, self.now, self.replans_left = [], -1, memory["num_replans"]

    def step(self, seen) -> bool:
        """Whether a new plan is wanted at once."""
        self.now += 1
        state = self.server.state
        if state["pending"] is None or self.now < state["pending"]:
            return False
        state.update(committed=state["pending"], pending=None)
        self.bank = [*self.bank, seen[self.camera]][-len(self.slots) :]
        self.replans_left -= 1
        return self.replans_left >= 0

    def shown(self):
        count = np.array([len(self.bank)], np.float32)
        empty = [self.nothing] * (len(self.slots) - len(self.bank))
        return {self.name: count, **dict(zip(self.slots, [*self.bank, *empty], strict=True))}


class Pair:
    """Both policies; compared to the bit at every act."""

    def __init__(self, warm, cold, expectation) -> None:
        self.warm, self.cold, self.expectation = warm, cold, expectation
        self.declared = expectation.graph["inputs"]
        self.left = {
            name: np.zeros(self.declared[name]["shape"], np.float32)
            for name in self.of_source("loop")
        }
        self.values: dict[str, object] = {}
        warm.forget()  # whatever it did before
        self.changed = set(self.declared)
        self.remembered = Remembered(expectation.graph) if "stores" in expectation.graph else None
        self.has_memory = any("memory" in given for given in self.declared.values())
        self.num_kept = 0
        """Keyframes shown, summed over the acts."""
        self.stale = expectation.reached(self.changed) - expectation.needed
        """Stages of leaves that did not run since what they read changed. Constants ran at load."""
        self.num_asked = 0

    def of_source(self, *sources):
        return [name for name, given in self.declared.items() if given["source"] in sources]

    def start(self, seed, **given):
        self.episodes = [policy.start(seed=seed, **given) for policy in (self.warm, self.cold)]
        self.seed, self.tick, self.past = seed, 0, []
        self.kept = Kept(self.declared) if self.has_memory else None
        self._note_all(given)

    def give(self, **given):
        for episode in self.episodes:
            episode.give(**given)
        self._note_all(given)

    def see(self, seen):
        """A step between two ticks."""
        wants = self._step(seen)
        assert [episode.see(seen) for episode in self.episodes] == [wants, wants]

    def act(self, seen):
        """Alike; and only what changed ran."""
        self._step(seen)
        seen = self._noted(seen)
        warm = self.episodes[0].act(seen)
        ran = set(self.warm.interpreter.last_run)
        self.cold.interpreter.forget()
        cold = self.episodes[1].act(seen)
        assert warm.actions.tobytes() == cold.actions.tobytes(), "a cached tensor went stale"
        expected = self.expectation.stages(self.changed)
        if self.remembered:
            spared = self.remembered.spared(self.changed, self.values)
            cones = tuple(f"{name}_{what}" for name in spared for what in CONE)
            expected = {stage for stage in expected if not stage.startswith(cones or ("/",))}
        assert ran == expected
        if self.kept:
            before = len(self.kept.bank)
            self.kept.server.ask(cold.leaves[self.kept.output], self.kept.now)
            self.num_kept += before
        self.stale |= self.expectation.reached(self.changed) - self.expectation.needed
        self.changed.clear()
        self.tick += 1

    def ask(self, leaf):
        """Behind an act: alike, and only what that leaf needs and nobody ran since."""
        warm = self.episodes[0].ask(leaf)
        ran = set(self.warm.interpreter.last_run)
        self.cold.interpreter.forget()
        assert warm.tobytes() == self.episodes[1].ask(leaf).tobytes(), f"{leaf} went stale"
        assert ran == self.stale & self.expectation.leaves[leaf]
        self.stale -= ran
        self.num_asked += 1

    def fail(self, seen, random):
        """The warm one breaks off at one of the stages that the tick needs, if it needs any."""
        before = self.values.copy(), self.changed.copy()
        past, kept = self.past.copy(), copy.deepcopy(self.kept)
        self._step(seen)
        seen = self._noted(seen)
        names = sorted(self.expectation.stages(self.changed))
        (self.values, self.changed), self.past, self.kept = before, past, kept
        if self.remembered:  # a picture may be remembered, and then nothing runs for it
            pictures = tuple(f"{n}_{w}" for n in self.remembered.pictures for w in CONE)
            names = [name for name in names if not name.startswith(pictures)]
        if not names:
            return
        broken, interpreter = str(random.choice(names)), self.warm.interpreter
        with pytest.MonkeyPatch.context() as patch:
            launch = interpreter._launch

            def breaking(stages, wanted):
                done = stages[: stages.index(broken)] if broken in stages else stages
                seconds = launch(done, wanted)
                if broken in stages:
                    raise EngineError(f"{broken} broke off")
                return seconds

            patch.setattr(interpreter, "_launch", breaking)
            if broken in interpreter._host_calls:

                def raising(values):
                    raise EngineError(f"{broken} broke off")

                patch.setitem(interpreter._host_calls, broken, raising)
            with pytest.raises(EngineError, match=f"{broken} broke off"):
                self.episodes[0].act(seen)

    def _step(self, seen) -> bool:
        self.past.append(dict(seen))
        return self.kept is not None and self.kept.step(seen)

    def _noted(self, seen):
        for name in self.of_source("delay"):
            given = self.declared[name]
            old = self.past[max(len(self.past) - 1 - given["steps"], 0)]
            self._note(name, old[given["of"]].tobytes())
        if self.kept:
            self._note_all(self.kept.shown())
        seen = seen | self.left
        for name in self.of_source("drawn"):
            self._note(name, (self.seed, self.tick))
        self._note_all(seen)
        return seen

    def _note_all(self, given):
        for name, value in given.items():
            self._note(name, value.tobytes() if isinstance(value, np.ndarray) else value)

    def _note(self, name, value):
        if self.values.get(name) != value:
            self.values[name] = value
            self.changed.add(name)


def drive(pair: Pair, image, state, *, num_sequences: int, steps: int, pool: int = 1000) -> None:
    """Random events of every kind.

    Args:
        image: seed -> a picture. Depth maps are drawn here.
        state: a vector that the policy takes; its first number is moved.
        pool: different pictures that there are.
    """
    random = np.random.default_rng(0)
    cameras = [n for n in pair.of_source("robot") if pair.declared[n]["kind"] == "image"]
    depths = [n for n in pair.of_source("robot") if pair.declared[n]["kind"] == "depth"]
    vectors = [n for n in pair.of_source("robot") if pair.declared[n]["kind"] == "vector"]
    latches = pair.of_source("latch")

    def picture():
        return image(int(random.integers(pool)))

    def depth(name):
        drawn = np.random.default_rng(int(random.integers(pool)))
        depth_m = drawn.uniform(0.2, 4, pair.declared[name]["shape"]).astype(np.float32)
        return np.where(drawn.random(depth_m.shape) < 0.1, np.float32(0), depth_m)

    def words():
        return str(random.choice(INSTRUCTIONS))

    seen = {name: picture() for name in cameras} | dict.fromkeys(vectors, state)
    seen |= {name: depth(name) for name in depths}
    kinds = ["frame", "say", "repeat", "fail"]
    kinds += ["see"] * bool(pair.of_source("delay"))
    kinds += ["depth"] * bool(depths) + ["ask"] * 2 * bool(pair.expectation.leaves)
    kinds += ["latch"] * bool(latches) + ["state"] * bool(vectors) + ["leftover"] * bool(pair.left)
    for _ in range(num_sequences):
        latched = {name: picture() for name in latches}
        pair.start(int(random.integers(3)), instruction=words(), **latched)
        for _ in range(steps):
            match kind := random.choice(kinds):
                case "frame":
                    seen[str(random.choice(cameras))] = picture()
                case "depth":
                    name = str(random.choice(depths))
                    seen[name] = depth(name)
                case "say":
                    pair.give(instruction=words())
                case "latch":
                    pair.give(**{str(random.choice(latches)): picture()})
                case "leftover":
                    for name, value in pair.left.items():
                        pair.left[name] = random.uniform(0, 1, value.shape).astype(np.float32)
                case "state":
                    for name in vectors:
                        seen[name] = seen[name] + np.float32(0.01)
                case "see":
                    for _ in range(int(random.integers(1, 9))):  # up to a chunk of the tiny ones
                        seen |= {camera: picture() for camera in cameras}
                        pair.see({camera: seen[camera] for camera in cameras})
                case "fail":
                    pair.fail(seen, random)
            pair.act(seen)
            if kind == "ask":
                pair.ask(str(random.choice([*pair.expectation.leaves])))
