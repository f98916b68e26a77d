"""A bundle of a policy with three anchors: what is kept of each, and who replaces which."""

import numpy as np
import pytest

import runtime
from export.build import build
from models.checkpoint import load_checkpoint, write_random_checkpoint
from models.demo import CHECKPOINT, EPISODES
from models.families import CONFIGS
from models.init import image_of, statistics_of
from runtime.__main__ import main
from runtime.anchor import Every, Semantic
from runtime.backends.tensorrt import TensorRTBackend
from runtime.errors import ObservationError
from tests.export.conftest import cut_config
from tests.export.test_forecast import check_counts, sized
from tests.once import once
from tests.simulation import install, make_plan

ANCHORS = ("anchor", "anchor_2", "anchor_3")
BEHIND = {"suffix", "spatial", "condition", *(f"denoise_{k}" for k in range(10))}
"""Engine stages that every anchor decides about."""


@pytest.fixture(scope="module")
def folder(shared_folder):
    config = CONFIGS["three-anchors"]()

    def write(out):
        write_random_checkpoint(
            out, config, tokenizer=CHECKPOINT / "tokenizer.json", image=image_of(config),
            statistics=statistics_of(config), seed=0,
        )  # fmt: skip

    return once(shared_folder / "three-anchors-checkpoint", write)


@pytest.fixture(scope="module")
def bundle(folder, shared_folder):
    return once(
        shared_folder / "three-anchors",
        lambda out: build(
            cut_config(folder, out, "float32", calibration=None, held_out=None, tokens=None)
        ),
    )


@pytest.fixture(scope="module")
def policy(bundle):
    with runtime.load(bundle) as loaded:
        yield loaded


def seen(image, number):
    noise = np.zeros((10, 4), np.float32)
    return {"frame": image(number), "state": np.zeros(4, np.float32), "noise": noise}


def start(policy, image, **more):
    given = {name: image(10 + place) for place, name in enumerate(ANCHORS)}
    return policy.start(instruction="open the drawer", **(given | more))


@pytest.mark.parametrize("changed", range(3))
def test_a_new_anchor_leaves_what_depends_on_those_before_it(policy, image, changed):
    episode = start(policy, image)
    before = episode.act(seen(image, 1)).actions
    episode.give(**{ANCHORS[changed]: image(20)})
    after = episode.act(seen(image, 1)).actions
    engines = {stage.name for stage in policy.graph.stages if stage.engine}
    own = {f"{ANCHORS[changed]}_{what}" for what in ("vision", "project")}
    calls = {"prefix", "anchor_2_prefix", "anchor_3_prefix"} - {
        ("prefix", "anchor_2_prefix", "anchor_3_prefix")[place] for place in range(changed)
    }
    assert engines & episode.stats.last_s.keys() == own | calls | BEHIND
    assert not np.array_equal(before, after)


def test_every_anchor_has_a_policy_of_its_own_and_is_the_first_frame_at_first(policy, image):
    chosen = {"anchor_2": Every(2), "anchor_3": Semantic(2.0)}  # nothing is as like as that
    episode = policy.start(instruction="open the drawer", anchor_policy=chosen)
    episode.act(seen(image, 1))
    assert [float(episode.ask(f"{name}_similarity")[0]) for name in ANCHORS] == pytest.approx(
        [1.0] * 3
    )
    for number in (2, 3, 4):
        episode.act(seen(image, number))
    runs = [episode.stats.num_runs[f"{name}_vision"] for name in ANCHORS]
    assert runs == [1, 2, 4]
    first, second, third = (float(episode.ask(f"{name}_similarity")[0]) for name in ANCHORS)
    assert third == pytest.approx(1.0) and max(first, second) < 0.9999 and first != second
    episode.latch("anchor_2")
    episode.act(seen(image, 4))
    assert episode.ask("anchor_2_similarity")[0] == pytest.approx(1.0)


def test_a_scene_is_compared_with_the_anchor_that_the_policy_is_of(policy, image):
    chosen = dict.fromkeys(ANCHORS[1:], Semantic(0.9999))
    episode = policy.start(instruction="open the drawer", anchor_policy=chosen)
    episode.act(seen(image, 1))
    episode.give(anchor_2=image(9))  # it alone no longer looks like the scene
    likeness = []
    for _ in range(2):
        episode.act(seen(image, 1))
        likeness.append([float(episode.ask(f"{name}_similarity")[0]) for name in ANCHORS])
    assert [of[1] < 0.9999 for of in likeness] == [True, False]
    runs = [episode.stats.num_runs[f"{name}_vision"] for name in ANCHORS]
    assert runs[1] == 3 and max(runs[0], runs[2]) == 1


def test_on_a_simulated_gpu_anchors_come_and_go_to_the_same_bits(bundle, image, monkeypatch):
    world = install(monkeypatch)
    runtime.read_bundle(bundle)
    world.is_verified = True
    backends = (lambda _: TensorRTBackend(make_plan), "onnxruntime")
    policies = [runtime.load(bundle, backend=backend) for backend in backends]
    episodes = [start(policy, image) for policy in policies]
    for number, name in enumerate(("", "anchor_2", "anchor_3", "anchor", "", "anchor_2")):
        for episode in episodes if name else ():
            episode.give(**{name: image(30 + number)})
        chunks = [episode.act(seen(image, number % 2)).actions for episode in episodes]
        assert np.array_equal(*chunks), (number, name)
    for policy in policies:
        policy.close()
    assert not world.violations


def test_a_run_names_the_anchor_that_it_means(bundle, tmp_path, capsys):
    episode = str(EPISODES / "touch-red-1.npz")
    run = ["run", str(bundle), "--episodes", episode, "--rate-hz", "1000", "--max-steps", "12"]
    words = ["--anchor", "anchor_2=every(1)", "--anchor", "anchor_3=kinematic"]
    assert main([*run, *words, "--record", str(tmp_path)]) == 0
    (journal,) = tmp_path.glob("*.zip")
    assert main(["replay", str(journal), str(bundle)]) == 0
    assert "bit for bit as recorded" in capsys.readouterr().out
    assert main([*run, "--anchor", "every(2)"]) == 4
    said = capsys.readouterr().err
    assert "3 latches (anchor, anchor_2, anchor_3)" in said and "--anchor NAME=POLICY" in said
    assert main([*run, "--anchor", "anchor_4=first"]) == 4
    assert "the latches are: anchor, anchor_2, anchor_3" in capsys.readouterr().err


def test_an_unknown_latch_ends_nothing(policy, image):
    episode = start(policy, image)
    with pytest.raises(ObservationError, match="anchor_policy of anchor_4"):
        start(policy, image, anchor_policy={"anchor_4": Every(2)})
    episode.act(seen(image, 1))


def test_forecast_and_count_agree_for_every_call(folder, bundle):
    slots = runtime.read_bundle(bundle).manifest.graph.tensors["suffix_embeddings"].shape[0]
    check_counts(bundle, sized(load_checkpoint(folder).config, folder, slots), "float32")
