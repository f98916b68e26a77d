"""EventVLA, pictures to actions and probabilities, against the composition of transformers."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import tests.qwen3
from models.anchorvla4d.presets import demo
from models.chat import PromptConfig
from models.eventvla.config import EventVLAConfig
from models.eventvla.model import predict
from models.eventvla.pictures import observed_names, slot_names
from models.eventvla.prompt import prompt, shown
from models.families import to_json
from models.fields import parse
from models.networks.config import MLPResNetConfig
from models.policy_config import NormalizationConfig
from runtime.functions.keyframes import EventSettings
from runtime.image import grid_of
from runtime.prompt import encode_tail
from tests.oracles import IMAGE, MODULE, beside_libraries, relative_error

THOUGHT = "Your task is {instruction}. To identify the key objects for your task, locate them."
ALOHA = ("head", "left_wrist", "right_wrist")
INSTRUCTIONS = ("reach", "push the puck", " ".join(6 * ["open the drawer, then close it"]))


def config_of(backbone, horizon, views=("head",), **fields):
    vision, language = backbone
    return EventVLAConfig(
        vision=vision,
        language=language,
        head=MLPResNetConfig(action_dim=5, action_horizon=horizon),
        normalization=NormalizationConfig(
            action=("min_max",) * 5, state=(), action_units=("rad",) * 5, state_units=()
        ),
        views=views,
        **fields,
    )


QWEN2_5 = (demo().vision, demo().language)
UNLABELLED = {
    "prompt": PromptConfig(text=THOUGHT),
    "observation_label": "",
    "keyframe_label": "",
}
CONFIGS = {
    "three views": config_of(tests.qwen3.small(), 8, ALOHA),
    "one view and a thought": config_of(
        tests.qwen3.small(), 16, prompt=PromptConfig(before="<|im_start|>user\n", text=THOUGHT)
    ),
    "Qwen2.5-VL": config_of(QWEN2_5, 16, ALOHA, **UNLABELLED),
    "Qwen2.5-VL, labelled": config_of(QWEN2_5, 8, delays=(9, 4, 1)),
    "published widths": config_of(tests.qwen3.wide(), 16),
    "no events": config_of(tests.qwen3.small(), 8, predicts_keyframes=False),
}
SMALL = [name for name in CONFIGS if name not in ("published widths", "no events")]
IMAGES = {name: IMAGE if "2.5" in name else tests.qwen3.IMAGE for name in CONFIGS}


@pytest.fixture(scope="module")
def policies(tokenizer):
    return beside_libraries(CONFIGS, tokenizer, IMAGES.__getitem__)


def observed(config, num_keyframes, instruction="push the puck", seed=0, size=(64, 96)):
    random = np.random.default_rng(seed)
    count = config.num_observed + num_keyframes
    pictures = list(random.integers(0, 256, (count, *size, 3), np.uint8))
    return {
        "instruction": instruction,
        "pictures": pictures[: config.num_observed],
        "keyframes": pictures[config.num_observed :],
    }


def named(config, seen):
    """By the names of the policy's inputs."""
    names = observed_names(config)
    shown = dict(zip(names, seen["pictures"], strict=True))
    shown |= dict(zip(slot_names(config), seen["keyframes"], strict=False))
    count = np.array([len(seen["keyframes"])], np.float32)
    return {"instruction": seen["instruction"], "keyframes": count, **shown}


def act(policies, tokenizer, name, seen):
    """[T, A] and logits [T]: where all probabilities are near a half, these still differ."""
    model, _ = policies(name)
    parts = prompt(model.config, tokenizer)
    tail = encode_tail(tokenizer, parts.tail, parts.end_ids, seen["instruction"])
    made = predict(model, parts, IMAGES[name], tail, [*seen["pictures"], *seen["keyframes"]])
    return made.actions_TA.numpy(), made.probabilities_T.logit().numpy()


@torch.no_grad()
def by_libraries(policies, name, seen, **more):
    _, oracle = policies(name)
    made = oracle.predicted(*oracle.prepare(**named(oracle.config, seen), **more))
    return made.actions_TA.numpy(), made.probabilities_T.logit().numpy()


def check(policies, tokenizer, name, seen, **more):
    got = act(policies, tokenizer, name, seen)
    want = by_libraries(policies, name, seen, **more)
    horizon, _ = chunk = CONFIGS[name].chunk
    assert [len(x) for x in got] == [horizon, horizon] and got[0].shape == chunk
    assert all(x.dtype == np.float32 for x in got)
    for ours, libraries in zip(got, want, strict=True):
        assert libraries.std() > 1e-3
        assert relative_error(ours, libraries) <= MODULE


@pytest.mark.parametrize("num_keyframes", range(5))
@pytest.mark.parametrize("name", SMALL)
def test_actions_and_probabilities_equal_those_of_the_libraries(
    policies, tokenizer, name, num_keyframes
):
    for seed, instruction in enumerate(INSTRUCTIONS):
        seen = observed(CONFIGS[name], num_keyframes, instruction, seed)
        check(policies, tokenizer, name, seen)


def test_at_the_published_widths_too(policies, tokenizer):
    seen = observed(CONFIGS["published widths"], 2)
    check(policies, tokenizer, "published widths", seen)


@pytest.mark.parametrize("padding", [1, 40])
@pytest.mark.parametrize("name", ["three views", "Qwen2.5-VL"])
def test_padding_on_the_left_changes_nothing(policies, tokenizer, name, padding):
    seen = observed(CONFIGS[name], 3, seed=3)
    _, oracle = policies(name)
    more = oracle.prepare(**named(oracle.config, seen), padding=padding).input_ids.shape[1]
    assert more == oracle.prepare(**named(oracle.config, seen)).input_ids.shape[1] + padding
    check(policies, tokenizer, name, seen, padding=padding)


def replaced(seen, kind, place, picture):
    pictures = list(seen[kind])
    pictures[place] = picture
    return seen | {kind: pictures}


@pytest.mark.parametrize("name", ["three views", "Qwen2.5-VL"])
def test_everything_observed_changes_both_outputs(policies, tokenizer, name):
    seen, other = (observed(CONFIGS[name], 4, seed=seed) for seed in (1, 2))
    changes = {"instruction": seen | {"instruction": "open the drawer"}}
    for kind in ("pictures", "keyframes"):
        for place, picture in enumerate(other[kind]):
            changes[kind, place] = replaced(seen, kind, place, picture)
    changes["one keyframe less"] = seen | {"keyframes": seen["keyframes"][:-1]}
    want = act(policies, tokenizer, name, seen)
    for what, changed in changes.items():
        for got, before in zip(act(policies, tokenizer, name, changed), want, strict=True):
            assert relative_error(got, before) > 10 * MODULE, what


def test_pictures_are_told_apart_by_their_order(policies, tokenizer):
    seen = observed(CONFIGS["three views"], 2, seed=4)
    pictures, (old, new) = seen["pictures"], seen["keyframes"]
    want = act(policies, tokenizer, "three views", seen)
    first, thirty, fifteen, now = (pictures[i : i + 3] for i in range(0, 12, 3))
    turned = {
        "views": seen | {"pictures": [pictures[1], pictures[0], *pictures[2:]]},
        "moments": seen | {"pictures": [*first, *fifteen, *thirty, *now]},
        "keyframes": seen | {"keyframes": [new, old]},
    }
    for what, changed in turned.items():
        for got, before in zip(act(policies, tokenizer, "three views", changed), want, strict=True):
            assert relative_error(got, before) > 10 * MODULE, what


@pytest.mark.parametrize("num_keyframes", [0, 1, 4])
@pytest.mark.parametrize("name", SMALL)
def test_the_pieces_of_a_prompt_are_the_ids_of_the_whole(policies, tokenizer, name, num_keyframes):
    """Those of the libraries, which encode the prompt as one text."""
    _, oracle = policies(name)
    seen = observed(CONFIGS[name], num_keyframes)
    want = oracle.prepare(**named(oracle.config, seen)).input_ids[0].tolist()
    whole = prompt(CONFIGS[name], tokenizer)
    count = CONFIGS[name].num_observed + num_keyframes
    before = shown(whole, count).before
    assert len(before) == count and whole.before[:count] == before
    tail = encode_tail(tokenizer, whole.tail, whole.end_ids, seen["instruction"])
    merged = np.prod(grid_of(64, 96, IMAGES[name])) // 4
    picture = [oracle.image_pad_id] * merged
    ids = list(before[0])
    for piece in before[1:]:
        ids += [*picture, *whole.image_end, *piece]
    assert [*ids, *picture, *tail] == want


def asked(horizon):
    return (
        f" Please predict the next {horizon} robot actions and estimate which future observation "
        "positions inside this chunk are key events: <action>"
        + "\N{LEFT-POINTING MAGNIFYING GLASS}" * horizon
        + "<action>."
    )


SEEN = "<|vision_start|><|image_pad|><|vision_end|>"


@pytest.mark.parametrize(
    ("name", "num_keyframes", "words"),
    [
        (
            "three views",
            2,
            "<|im_start|>user\nTemporal observation images:" + 12 * SEEN
            + "Past keyframe images:" + 2 * SEEN + "reach" + asked(8),
        ),
        (
            "one view and a thought",
            0,
            "<|im_start|>user\nTemporal observation images:" + 4 * SEEN + "Your task is reach"
            + asked(16) + ". To identify the key objects for your task, locate them.",
        ),
        (
            "Qwen2.5-VL",
            1,
            "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n"
            + 13 * SEEN + "Your task is reach" + asked(16)
            + ". To identify the key objects for your task, locate them.",
        ),
    ],
)  # fmt: skip
def test_a_prompt_is_one_turn_of_the_chat(policies, name, num_keyframes, words):
    _, oracle = policies(name)
    ids = (
        oracle.prepare(**named(CONFIGS[name], observed(CONFIGS[name], num_keyframes, "reach")))
        .input_ids[0]
        .tolist()
    )
    shorter = [
        known
        for place, known in enumerate(ids)
        if known != oracle.image_pad_id or ids[place - 1] != known
    ]
    text = oracle.tokenizer.decode(shorter, skip_special_tokens=False)
    assert text == words + "<|im_end|>\n<|im_start|>assistant\n"


def test_a_head_that_does_not_speak_says_that_nothing_is_an_event(policies, tokenizer):
    name = "no events"
    model, oracle = policies(name)
    seen, parts = observed(CONFIGS[name], 0), prompt(CONFIGS[name], tokenizer)
    tail = encode_tail(tokenizer, parts.tail, parts.end_ids, seen["instruction"])
    made = predict(model, parts, IMAGES[name], tail, seen["pictures"])
    want = oracle.predicted(*oracle.prepare(**named(oracle.config, seen)))
    assert relative_error(made.actions_TA, want.actions_TA) <= MODULE
    assert made.probabilities_T.tolist() == want.probabilities_T.tolist() == [0.0] * 8
    assert not [n for n in model.state_dict() if n.startswith("keyframe_head")]
    assert len(parts.before) == 4 and "keyframe head" not in CONFIGS[name].other_networks


def test_parameters_have_their_published_names(policies):
    model, _ = policies("three views")
    shapes = {n: tuple(t.shape) for n, t in model.state_dict().items()}
    assert {n: s for n, s in shapes.items() if n.startswith("keyframe_head.")} == {
        "keyframe_head.0.weight": (80,),
        "keyframe_head.0.bias": (80,),
        "keyframe_head.1.weight": (80, 80),
        "keyframe_head.1.bias": (80,),
        "keyframe_head.3.weight": (1, 80),
        "keyframe_head.3.bias": (1,),
    }
    assert shapes["action_head.model.fc1.weight"] == (160, 80)
    assert {n.split(".")[0] for n in shapes} == {"vlm", "action_head", "keyframe_head"}


@pytest.mark.parametrize(
    ("name", "count"), [("three views", 11), ("three views", 17), ("no events", 5)]
)
def test_pictures_too_few_or_too_many_are_refused(policies, tokenizer, name, count):
    model, _ = policies(name)
    pictures = [np.zeros((64, 96, 3), np.uint8)] * count
    shows = CONFIGS[name].num_observed
    with pytest.raises(ValueError, match=f"^{count} pictures: the prompt shows {shows}, and"):
        predict(model, prompt(CONFIGS[name], tokenizer), IMAGES[name], (1,), pictures)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"views": ()}, "views must name at least one camera, each once"),
        ({"main_view": "wrist"}, r"main_view must be one of \('head',.*\), got 'wrist'"),
        ({"delays": (15, 30)}, r"delays must fall and be at least 1, got \(15, 30\)"),
        ({"delays": (30, 30)}, "delays must fall"),
        ({"delays": (30, 0)}, "delays must fall and be at least 1"),
        ({"head": MLPResNetConfig(action_dim=6, action_horizon=8)}, "5 modes for 6 dimensions"),
        ({"model_type": "qwenoft"}, "model_type must be 'eventvla', got 'qwenoft'"),
        ({"language": demo().language}, "which goes with a Qwen3LanguageConfig"),
    ],
)
def test_a_configuration_that_does_not_fit_together_is_refused(fields, words):
    with pytest.raises(ValueError, match=words):
        dataclasses.replace(CONFIGS["three views"], **fields)


def test_a_configuration_comes_back_from_json_and_has_the_published_settings():
    config = CONFIGS["three views"]
    assert parse(EventVLAConfig, json.loads(to_json(config)), "") == config
    assert config.delays == (30, 15) and config.most_keyframes == 4 and config.num_observed == 12
    assert config.events == EventSettings(
        threshold=0.55, least_offset=1, nms_window=20, cooldown=20, most_keyframes=4, num_replans=3
    )


def test_a_configuration_loads_without_torch():
    code = "import sys, models.eventvla.config; print('torch' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=Path(__file__).parents[2], capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.strip() == "False"
