"""What an EventVLA run's settings say is what its policy does."""

import shutil

import pytest
import torch

from models.checkpoint import open_checkpoint
from models.errors import CheckpointError
from runtime.functions.keyframes import EventSettings
from tests.models import starvla_runs
from tests.models.starvla_runs import PRESETS, edit_weights, edit_yaml, settings, synthesized

OBSERVED = "_keyframe_annotations_observed"
MEMORY = "framework", "memory_buffer"
INJECTION = *MEMORY, "qwen_memory_injection"
DATA = "datasets", "vla_data"
IMAGE = *DATA, "temporal", "image"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        starvla_runs.register(patch)
        base = tmp_path_factory.mktemp("runs")
        return {name: synthesized(base / name, name) for name in ("remembers", "silent")}


@pytest.fixture
def run(made, tmp_path):
    return lambda name="remembers": shutil.copytree(made[name], tmp_path / "run")


def changed(folder, path, **values):
    """None takes a setting away."""

    def edit(raw):
        found = settings(raw, *path)
        found.update(values)
        for name in [n for n, value in values.items() if value is None]:
            del found[name]

    edit_yaml(folder, edit)
    return folder


def opened(folder):
    return open_checkpoint(folder).config


def refused(folder, words):
    with pytest.raises(CheckpointError, match=words):
        open_checkpoint(folder)


@pytest.mark.parametrize(
    ("said", "flag", "speaks"),
    [
        ("auto", True, True), ("auto", False, False), ("Auto", True, True), (True, False, True),
        ("enabled", False, True), ("on", False, True), (False, True, False), ("none", True, False),
        ("disabled", True, False), (None, False, True),
    ],
)  # fmt: skip
def test_the_keyframe_head_speaks_where_the_run_says_so(run, said, flag, speaks):
    folder = changed(run(), MEMORY, use_keyframe_predict_head=said)
    edit_weights(folder, lambda state: state.update({OBSERVED: torch.tensor(flag)}))
    checkpoint = open_checkpoint(folder)
    assert checkpoint.config.predicts_keyframes == speaks
    assert checkpoint.config.most_keyframes == (2 if speaks else 0)
    silent = [u.name for u in checkpoint.weights.unused if u.name.startswith("keyframe_head.")]
    assert len(silent) == (0 if speaks else 6)
    believed = f"the keyframe head {'speaks' if speaks else 'is silent'}: "
    assert any(believed in line for line in checkpoint.said) == (str(said).lower() == "auto")


def test_a_head_that_nothing_tells_about_is_refused(run):
    folder = run()
    edit_weights(folder, lambda state: state.pop(OBSERVED))
    refused(folder, f"use_keyframe_predict_head is auto, and {OBSERVED} is missing")
    changed(folder, MEMORY, use_keyframe_predict_head="perhaps")
    refused(folder, "use_keyframe_predict_head must be auto or a bool, got 'perhaps'")


def test_a_flag_is_read_from_safetensors_too(made, tmp_path, monkeypatch):
    starvla_runs.register(monkeypatch)
    for name in made:
        folder = synthesized(tmp_path / name, name, "--weights", "safetensors")
        assert opened(folder).predicts_keyframes == PRESETS[name]().predicts_keyframes


NOTHING = dict.fromkeys(
    (
        "event_future_min_offset", "event_commit_threshold", "keyframe_nms_window",
        "keyframe_cooldown_steps", "enable_keyframe_inference_event_filter",
    )
)  # fmt: skip


@pytest.mark.parametrize(
    ("stated", "expected"),
    [
        ({}, {}),
        ({"keyframe_cluster_timestep_window": 7}, {"nms_window": 7, "cooldown": 7}),
        ({"keyframe_nms_window": 3}, {"nms_window": 3}),
        ({"keyframe_cooldown_steps": 4}, {"cooldown": 4}),
        ({"keyframe_nms_window": 3, "keyframe_inference_nms_window": 5}, {"nms_window": 5}),
        ({"keyframe_cooldown_steps": 4, "keyframe_inference_cooldown_steps": 6}, {"cooldown": 6}),
        ({"event_future_min_offset": 2, "event_commit_threshold": 0.7},
         {"least_offset": 2, "threshold": 0.7}),
    ],
)  # fmt: skip
def test_events_are_told_apart_as_the_run_says_or_by_the_authors_defaults(run, stated, expected):
    folder = changed(run(), MEMORY, **NOTHING)
    changed(folder, MEMORY, **stated)
    changed(folder, INJECTION, max_keyframe_images=None)
    assert opened(folder).events == EventSettings(**expected)
    assert opened(folder).events.most_keyframes == 4


@pytest.mark.parametrize(("value", "label"), [(False, ""), ("off", ""), (None, "Past keyframe")])
def test_pictures_are_labelled_where_the_run_says_so(run, value, label):
    config = opened(changed(run(), INJECTION, use_image_role_text=value))
    assert config.keyframe_label[:13] == label
    assert bool(config.observation_label) == bool(label)


def test_the_older_backbone_writes_no_labels(run):
    assert not opened(changed(run("silent"), INJECTION, use_image_role_text=True)).keyframe_label


@pytest.mark.parametrize(
    ("deltas", "delays"), [([0], ()), ([-30, -15, 0], (30, 15)), ([-1, 0], (1,)), (None, (30, 15))]
)
def test_pictures_of_the_past_are_so_old(run, deltas, delays):
    assert opened(changed(run(), IMAGE, delta_indices=deltas)).delays == delays


def test_the_older_length_of_a_chunk_counts(run):
    path, folder = ("framework", "action_model"), run()
    assert opened(changed(folder, path, future_action_window_size=5)).head.action_horizon == 6
    assert opened(changed(folder, path, future_action_window_size=None)).head.action_horizon == 8


@pytest.mark.parametrize(
    ("stated", "view"),
    [
        ({}, "cam_high"),
        ({"exclude_name_patterns": ["high"], "include_names": ["right_wrist"]}, "cam_right_wrist"),
        ({"exclude_name_patterns": ["cam"]}, "cam_high"),
    ],
)
def test_keyframes_are_of_the_first_camera_that_is_no_wrist(run, stated, view):
    folder = changed(run(), (*DATA, "keyframe_image_memory"), **stated)
    assert opened(folder).main_view == view


@pytest.mark.parametrize(
    ("path", "stated", "words"),
    [
        (
            INJECTION,
            {"keyframe_image_position": "before_anchor_images"},
            "is not served: keyframes",
        ),
        (INJECTION, {"mode": "tokens"}, "memory_ablation_mode and .*mode must be 'pure_image_key"),
        (("framework",), {"memory_ablation_mode": None}, "must be 'pure_image_keyframe_memory', g"),
        (INJECTION, {"use_image_role_text": "perhaps"}, "use_image_role_text must be true or fal"),
        (INJECTION, {"max_keyframe_images": "4"}, "most_keyframes must be a whole number, got '4'"),
        (INJECTION, {"max_keyframe_images": 0}, "events.most_keyframes must be at least 1, got 0"),
        (MEMORY, {"enable_keyframe_inference_event_filter": False}, "filter=false is not served"),
        (MEMORY, {"event_commit_threshold": "high"}, "event_commit_threshold must be a number"),
        (MEMORY, {"event_commit_threshold": 2}, r"events.threshold must be in \(0, 1\], got 2.0"),
        (MEMORY, {"keyframe_nms_window": True}, "nms_window must be a whole number, got True"),
        (("framework",), {"memory_buffer": 3}, "memory_buffer must hold settings by name, got 3"),
        (IMAGE, {"absolute_indices": [1]}, r"must be \[0\] and delta_indices rise to 0, got \[1\]"),
        (IMAGE, {"delta_indices": [-15, -30, 0]}, "delta_indices rise to 0"),
        (IMAGE, {"delta_indices": [-15]}, "delta_indices rise to 0"),
        (IMAGE, {"delta_indices": [-15.0, 0]}, "delta_indices rise to 0"),
        (DATA, {"include_state": True}, "include_state: EventVLA takes no state"),
        (DATA, {"obs_image_size": [320, 240]}, "only squares are served"),
        (("framework", "action_model"), {"action_dim": 7}, "action_dim=7, and the weights say 14"),
    ],
)
def test_what_is_not_served_is_refused(run, path, stated, words):
    refused(changed(run(), path, **stated), words)
