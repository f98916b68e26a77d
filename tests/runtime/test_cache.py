"""The anchor cache is right: warm equals cold to the bit, and only what changed is recomputed.

What should run is worked out here from the manifest's JSON alone, by walking bytes forward from
the changed inputs, with no code of `runtime.graph`.
"""

import json
from pathlib import Path

import numpy as np
import pytest

import runtime

NUM_SEQUENCES = 50
STEPS = 6
INSTRUCTIONS = ("reach the green marker", "open the drawer", "push the puck to the marker")


class Expectation:
    """Which stages a set of changed inputs reaches, and which of them the actions need."""

    def __init__(self, bundle: Path) -> None:
        self.graph = json.loads((bundle / "manifest.json").read_text())["graph"]
        self.needed = self._ancestors(next(iter(self.graph["outputs"])))

    def stages(self, changed: set[str]) -> set[str]:
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
        return dirty & self.needed

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


class Pair:
    """A warm policy and one that recomputes everything, driven alike and compared at every act."""

    def __init__(self, warm, cold, expectation) -> None:
        self.warm, self.cold, self.expectation = warm, cold, expectation
        self.leftover = np.zeros(warm.inputs["leftover"].shape, np.float32)
        self.values: dict[str, object] = {"leftover": self.leftover.tobytes()}
        # Loading ran the golden observation, of which nothing is left over: the first act of the
        # first episode changes everything else.
        self.changed = {*warm.graph.inputs} - {"leftover"}

    def start(self, anchor, instruction, seed):
        arguments = {"anchor": anchor, "instruction": instruction, "seed": seed}
        self.episodes = [policy.start(**arguments) for policy in (self.warm, self.cold)]
        self.seed, self.tick = seed, 0
        self._note("anchor", anchor.tobytes())
        self._note("instruction", instruction)

    def say(self, instruction):
        for episode in self.episodes:
            episode.say(instruction)
        self._note("instruction", instruction)

    def give(self, *, anchor):
        for episode in self.episodes:
            episode.give(anchor=anchor)
        self._note("anchor", anchor.tobytes())

    def act(self, image, state):
        self._note("frame", image.tobytes())
        self._note("state", state.tobytes())
        self._note("noise", (self.seed, self.tick))
        self._note("leftover", self.leftover.tobytes())
        seen = {"frame": image, "state": state, "leftover": self.leftover}
        warm = self.episodes[0].act(seen).actions
        ran = set(self.warm.interpreter.last_run)
        self.cold.interpreter.forget()
        cold = self.episodes[1].act(seen).actions
        assert warm.tobytes() == cold.tobytes(), "a cached tensor went stale"
        assert ran == self.expectation.stages(self.changed)
        self.changed.clear()
        self.tick += 1

    def _note(self, name, value):
        if self.values.get(name) != value:
            self.values[name] = value
            self.changed.add(name)


@pytest.fixture(scope="module")
def policies(demo_bundle):
    return runtime.load(demo_bundle), runtime.load(demo_bundle)


def drive(pair: Pair, image, num_sequences: int) -> None:
    random = np.random.default_rng(0)

    def picture():
        return image(int(random.integers(1000)))

    state = np.array([0.0, 0.6, 0.2, 1.0], np.float32)
    for _ in range(num_sequences):
        pair.start(picture(), str(random.choice(INSTRUCTIONS)), int(random.integers(3)))
        frame = picture()
        for _ in range(STEPS):
            match random.choice(["act", "say", "anchor", "repeat", "state", "leftover"]):
                case "act":
                    frame = picture()
                case "say":
                    pair.say(str(random.choice(INSTRUCTIONS)))
                case "anchor":
                    pair.give(anchor=picture())
                case "leftover":
                    pair.leftover = random.uniform(0, 1, pair.leftover.shape).astype(np.float32)
                case "state":
                    state = state + np.float32(0.01)
            pair.act(frame, state)


def test_warm_equals_cold_and_only_what_changed_runs(policies, demo_bundle, image):
    pair = Pair(*policies, Expectation(demo_bundle))
    drive(pair, image, NUM_SEQUENCES)


@pytest.mark.parametrize(
    ("stage", "forgotten"),
    [
        ("prefix", "anchor"),
        ("suffix", "instruction"),
        ("spatial", "anchor"),
        ("pooling", "instruction"),
    ],
)
def test_a_planted_missing_dependency_is_caught(demo_bundle, image, stage, forgotten):
    broken, cold = runtime.load(demo_bundle), runtime.load(demo_bundle)
    interpreter = broken.interpreter
    index = [s.name for s in broken.graph.stages].index(stage)
    interpreter._needs[index] -= {forgotten}
    interpreter._versions.setdefault(interpreter._needs[index], 0)
    pair = Pair(broken, cold, Expectation(demo_bundle))
    with pytest.raises(AssertionError):
        drive(pair, image, 20)


def test_a_new_instruction_recomputes_what_depends_on_the_text_and_nothing_else(policy, image):
    episode = policy.start(anchor=image(1), instruction="open the drawer")
    state = np.zeros(4, np.float32)
    noise = np.zeros(policy.chunk_shape, np.float32)
    episode.act({"frame": image(2), "state": state, "noise": noise})
    episode.say("close the drawer")
    episode.act({"frame": image(2), "state": state, "noise": noise})
    ran = set(episode.stats.last_s)
    assert {"suffix_tail", "suffix", "pooling", "condition", "denoise_0"} <= ran
    assert not ran & {"anchor_vision", "frame_vision", "prefix", "spatial", "policy_state", "x_0"}


def test_a_repeated_frame_costs_no_vision_pass(policy, image):
    episode = policy.start(anchor=image(1), instruction="open the drawer")
    for step in range(3):
        episode.act({"frame": image(5), "state": np.full(4, step, np.float32)})
    assert episode.stats.num_runs["frame_vision"] == 1
    assert episode.stats.repeated_frames == {"frame": 2}


def test_a_new_episode_with_the_same_anchor_keeps_it(policy, image):
    policy.start(anchor=image(7), instruction="open the drawer").act(
        {"frame": image(2), "state": np.zeros(4)}
    )
    episode = policy.start(anchor=image(7), instruction="open the drawer")
    episode.act({"frame": image(3), "state": np.zeros(4)})
    assert episode.stats.num_runs["prefix"] == 0
