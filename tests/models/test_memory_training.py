"""The training of the demo policy with a memory: what it is asked and told, and its end."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer

from models.checkpoint import load_checkpoint
from models.demo import BLINK_CHECKPOINT, BLINK_EPISODES, training
from models.demo.blinks import BLINKED, EVENT, EXPERT, MARKERS, TARGET
from models.demo.config import RememberConfig
from models.demo.data import GRID, patches
from models.demo.memory import Remember
from models.demo.memory_data import BEFORE, DECIDED, WAITING, load_memories, make_batch
from models.demo.memory_learner import MemoryLearner
from models.demo.training import Trainer
from models.eventvla.model import predict
from models.eventvla.presets import blink
from models.eventvla.prompt import prompt as prompt_parts
from runtime import prompt
from runtime.recordings.recording import FRAME, STATE, load_recording

NUM_EPISODES = 21
"""One of twenty is held out."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The recorded episodes, each of them several times."""
    folder = tmp_path_factory.mktemp("blinks")
    recorded = sorted(BLINK_EPISODES.glob("*.npz"))
    for number in range(NUM_EPISODES):
        path = recorded[number % len(recorded)]
        (folder / f"touch-what-blinked-{number}.npz").symlink_to(path)
    return folder


@pytest.fixture(scope="module")
def recordings(folder):
    files = sorted(folder.glob("*.npz"), key=lambda path: int(path.stem.split("-")[-1]))
    return [load_recording(file) for file in files]


@pytest.fixture(scope="module")
def data(folder):
    return load_memories(folder, "touch-what-blinked", blink())


@pytest.fixture
def config(folder, tmp_path):
    return RememberConfig(
        data=folder, out=tmp_path / "out", see_steps=3, all_steps=3, head_steps=4, scenes=3,
        head_batch=8,
    )  # fmt: skip


class Silent:
    def print(self, *words, **options):
        pass


def run(config, console=None):
    Trainer(Remember(config), config.out).run(console or Silent())


def steps_of(recording, data, episode, phase):
    """Of the frames that the data have of a phase, found by their pictures."""
    pictures = recording.streams[FRAME].values
    start, stop = data.index[episode, phase]
    shown = data.frames[start:stop].numpy()
    return [np.flatnonzero((pictures == p).all(axis=(1, 2, 3))).tolist() for p in shown]


def test_phases_are_before_the_blink_is_over_waiting_and_free_to_go(data, recordings):
    for episode in (0, 1):
        streams = {n: s.values for n, s in recordings[episode].streams.items()}
        lit = np.flatnonzero(streams[EVENT][:, 0])
        markers = streams[MARKERS][0].reshape(-1, 3)
        goal = markers[int(streams[BLINKED][0, 0])]
        free = np.flatnonzero((streams[TARGET] == goal).all(axis=1))
        before, waiting, decided = (
            steps_of(recordings[episode], data, episode, phase)
            for phase in (BEFORE, WAITING, DECIDED)
        )
        assert [step in found for step, found in enumerate(before)] == [True] * (lit[-1] + 1)
        assert len(decided) == len(free)
        assert all(step in found for step, found in zip(free, decided, strict=True))
        assert all(any(lit[0] < step < free[0] for step in found) for found in waiting)
        assert len(waiting) > 10


def test_a_chunk_stands_still_where_nobody_can_know_what_comes(data, recordings):
    streams = {n: s.values for n, s in recordings[0].streams.items()}
    expert = streams[EXPERT]
    start, stop = data.index[0, DECIDED]
    chunks = data.chunks[start:stop].numpy()
    first = len(expert) - len(chunks)
    np.testing.assert_allclose(chunks[0], expert[first : first + 5], atol=1e-6)
    np.testing.assert_allclose(chunks[-1][0], expert[-1], atol=1e-6)
    assert (chunks[-1][1:] == 0).all()
    start, stop = data.index[0, WAITING]
    last = data.chunks[stop - 1].numpy()  # upon the last frame that shows the yellow marker
    np.testing.assert_allclose(last[0], expert[first - 1], atol=1e-6)
    assert (last[1:] == 0).all() and (expert[first] != 0).any()


def test_lit_frames_are_the_ones_with_a_green_marker(data):
    def green(pictures):
        wide = pictures.numpy().astype(int)
        seen = (wide[..., 1] > 150) & (wide[..., 0] < 90) & (wide[..., 2] < 90)
        return seen.sum(axis=(-2, -1))

    assert (green(data.lit) > 0).all()
    assert ((green(data.frames) > 0) == (data.is_lit.numpy() > 0)).all()
    assert (green(data.firsts) == 0).all()


def test_places_are_those_of_the_recording_standardised(data, recordings):
    def check(found, places):
        """Of the same places, in metres less their mean, over their spread."""
        found = found.numpy()
        off = places - places[0]
        moved = np.abs(off).max(axis=0) > 0.01
        ratio = (found - found[0])[:, moved] / np.where(off == 0, np.nan, off)[:, moved]
        assert (np.nanmax(ratio, axis=0) <= np.nanmin(ratio, axis=0) * 1.001).all() and moved.any()

    streams = [{n: s.values for n, s in r.streams.items()} for r in recordings]
    goals = [s[MARKERS][0].reshape(-1, 3)[int(s[BLINKED][0, 0])] for s in streams]
    check(data.blinked, np.stack(goals))
    start, stop = data.index[0, BEFORE]
    check(data.hands[start:stop], streams[0][STATE][: stop - start, :3])
    one, other = data.index[0, BEFORE, 0], data.index[0, DECIDED, 0]
    off = (data.targets[other] - data.targets[one]).numpy() * data.target_spread_m
    np.testing.assert_allclose(off, goals[0] - streams[0][TARGET][0], atol=1e-5)
    for places in (data.hands, data.targets, data.blinked):
        torch.testing.assert_close(places.mean(dim=0), torch.zeros(3), atol=1e-4, rtol=0)
        # A millimetre is added to the spread.
        assert ((places.std(dim=0) > 0.8) & (places.std(dim=0) < 1.03)).all()


def test_a_batch_asks_without_a_keyframe_before_the_blink_only(data):
    batch = make_batch(
        data, np.array([1, 0]), np.random.default_rng(0), counts=(3, 2, 4), device="cpu"
    )
    without, with_one = batch.questions
    assert without.scene.tolist() == [0] * 3 + [1] * 3
    assert with_one.scene.tolist() == [0] * 6 + [1] * 6
    for questions, phases in ((without, (BEFORE,)), (with_one, (WAITING, DECIDED))):
        for scene, index in zip(questions.scene, questions.index, strict=True):
            ranges = [data.index[batch.episodes[scene], phase] for phase in phases]
            assert any(start <= index < stop for start, stop in ranges)
        assert questions.pictures.equal(patches(data.frames[questions.index]))
    for scene, episode in enumerate(batch.episodes):
        assert batch.firsts[scene].equal(patches(data.firsts[[episode]])[0])
        lit = patches(data.lit[episode])
        assert any(batch.keyframes[scene].equal(picture) for picture in lit)


def test_the_learner_sees_what_the_policy_sees(data):
    """Rows and actions of a batch are those of the policy's own forward pass, asked one by one."""
    learner = MemoryLearner(
        blink(), data, BLINK_CHECKPOINT / "tokenizer.json", seed=3, device="cpu"
    )
    random = np.random.default_rng(1)
    batch = make_batch(data, np.array([0, 1]), random, counts=(2, 1, 2), device="cpu")
    tokenizer = Tokenizer.from_file(str(BLINK_CHECKPOINT / "tokenizer.json"))
    parts = prompt_parts(blink(), tokenizer)
    tail = prompt.encode_tail(tokenizer, parts.tail, parts.end_ids, data.instruction)
    with torch.no_grad():
        for asked, seen in zip(batch.questions, learner.seen(batch), strict=True):
            actions = learner.model.action_head(seen.rows)
            for row, scene in enumerate(asked.scene):
                pictures = [batch.firsts[scene], asked.pictures[row]]
                if asked is batch.questions[1]:
                    pictures.append(batch.keyframes[scene])
                whole = learner.model(pictures, GRID, parts, tuple(tail))
                # float32 sums of a few thousand terms, in another order.
                torch.testing.assert_close(actions[row], whole.actions_TA, atol=2e-5, rtol=0)
                likely = learner.model.probabilities(seen.rows[row])
                torch.testing.assert_close(likely, whole.probabilities_T, atol=2e-5, rtol=0)


def test_an_event_is_the_step_behind_a_lit_frame(data):
    learner = MemoryLearner(
        blink(), data, BLINK_CHECKPOINT / "tokenizer.json", seed=3, device="cpu"
    )
    index = np.array([int(data.index[0, BEFORE, 0]), int(data.index[0, BEFORE, 1]) - 1])
    assert data.is_lit[index].tolist() == [0, 1]
    rows = torch.from_numpy(np.random.default_rng(5).normal(size=(2, 5, 128))).float()
    with torch.no_grad():
        loss = learner.act(rows, index)["events"].item()
        logits = learner.model.keyframe_head(rows)[..., 0].double().numpy()
    costs = np.log1p(np.exp(logits))  # of calling it none
    costs[1, 1] = np.log1p(np.exp(-logits[1, 1]))
    assert loss == pytest.approx(costs.mean(), abs=1e-5)


def test_training_writes_a_checkpoint_that_loads_and_a_curve(config):
    trainer = Trainer(Remember(config), config.out)
    before = {n: p.clone() for n, p in trainer.lesson.average.state_dict().items()}
    trainer.run(Silent())
    checkpoint = load_checkpoint(config.out)
    assert checkpoint.config.description.startswith("trained by models/demo/memory.py, seed 0, ")
    curve = json.loads((config.out / "curve.json").read_text())
    assert [point["stage"] for point in curve] == ["see", "all", "heads"]
    assert all(np.isfinite(list(point.values())[2:]).all() for point in curve)
    assert "<polyline" in (config.out / "loss.svg").read_text()
    moved = {n for n, p in trainer.lesson.average.state_dict().items() if not p.equal(before[n])}
    for part in ("vlm.visual", "vlm.model", "action_head", "keyframe_head"):
        assert any(name.startswith(part) for name in moved), part


def test_a_run_that_was_cut_off_ends_in_the_same_bits(config, monkeypatch):
    monkeypatch.setattr(training, "REPORT_STEPS", 2)
    whole, cut = (replace(config, out=config.out / name) for name in ("whole", "cut"))
    run(whole)

    class Cut(Exception):
        pass

    class Cutting(Silent):
        lines = 0

        def print(self, *words, **options):
            self.lines += 1
            if self.lines == 6:  # within the last stage, whose second step is saved
                raise Cut

    with pytest.raises(Cut):
        run(cut, Cutting())
    run(cut)
    weights = [load_file(c.out / "model.safetensors") for c in (whole, cut)]
    assert all(value.equal(weights[1][name]) for name, value in weights[0].items())


def test_the_heads_are_trained_on_frozen_trunks(config):
    short = replace(config, head_steps=1, out=config.out / "short")
    run(short)
    run(config)
    weights = [load_file(c.out / "model.safetensors") for c in (short, config)]
    for name, value in weights[0].items():
        assert value.equal(weights[1][name]) == name.startswith("vlm."), name


def test_too_few_episodes_are_refused(config, tmp_path):
    with pytest.raises(ValueError, match=r"0 episodes are too few: .*python -m models.demo blinks"):
        Remember(replace(config, data=tmp_path))


@pytest.mark.parametrize(
    ("fields", "message"),
    [({"scenes": 1}, "at least two scenes"), ({"head_steps": 0}, "at least one step")],
)
def test_a_training_that_cannot_be_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        RememberConfig(**fields)


def test_the_shipped_policy_is_small_trained_and_free():
    checkpoint = load_checkpoint(BLINK_CHECKPOINT)
    assert (BLINK_CHECKPOINT / "model.safetensors").stat().st_size <= 6e6
    assert "trained by models/demo/memory.py, seed" in checkpoint.config.description
    assert checkpoint.config.license == "Apache-2.0"


def test_the_shipped_policy_knows_the_blink_and_where_to_go(recordings):
    """On recorded episodes, by its own forward pass: before calibration, export and simulator."""
    checkpoint = load_checkpoint(BLINK_CHECKPOINT)
    streams = {n: s.values for n, s in recordings[0].streams.items()}
    frames, lit = streams[FRAME], np.flatnonzero(streams[EVENT][:, 0])
    parts = prompt_parts(checkpoint.config, checkpoint.tokenizer)
    tail = tuple(
        prompt.encode_tail(
            checkpoint.tokenizer, parts.tail, parts.end_ids, recordings[0].instruction
        )
    )

    def asked(*steps):
        pictures = [frames[step] for step in (0, *steps)]
        return predict(checkpoint.model, parts, checkpoint.image, tail, pictures)

    assert asked(int(lit[0]) - 1).probabilities_T[1] < 0.5 < asked(int(lit[2])).probabilities_T[1]
    goal = streams[TARGET][-1]
    step = int(np.flatnonzero((streams[TARGET] == goal).all(axis=1))[0])
    way = goal - streams[STATE][step, :3]
    with_it = asked(step, int(lit[1])).actions_TA[0, :3].numpy()
    cosine = with_it @ way / np.linalg.norm(with_it) / np.linalg.norm(way)
    assert cosine > 0.9


def test_the_average_follows_fast_at_first(config):
    """Of step k: k / (k + 20) of it stays."""

    class Stopped(Exception):
        pass

    class Stopping(Silent):
        def print(self, *words, **options):
            raise Stopped

    trainer = Trainer(Remember(replace(config, see_steps=1)), config.out)
    before = {name: value.clone() for name, value in trainer.lesson.average.state_dict().items()}
    with pytest.raises(Stopped):
        trainer.run(Stopping())
    for name, value in trainer.lesson.model.state_dict().items():
        expected = before[name] + (1 - 1 / 21) * (value - before[name])
        average = trainer.lesson.average.state_dict()[name]
        # A step moves weights by 2e-5; a twentieth of that has to be told from rounding.
        torch.testing.assert_close(average, expected, atol=2e-7, rtol=0)
