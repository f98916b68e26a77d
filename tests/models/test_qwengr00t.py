"""QwenGR00T, cameras to actions, against the composition of transformers and diffusers."""

import dataclasses

import numpy as np
import pytest
import torch

from models.anchorvla4d.presets import demo, full, shallow
from models.chat import PromptConfig
from models.networks.config import FlowDiTConfig
from models.policy_config import NormalizationConfig
from models.qwengr00t.config import QwenGR00TConfig
from models.qwengr00t.family import prompt
from runtime.image import grid_of
from runtime.prompt import encode_tail
from tests.oracles import END_TO_END, IMAGE, beside_libraries, patches_of, relative_error

SMALL = FlowDiTConfig(
    num_layers=4, num_heads=4, head_dim=8, action_dim=7, action_horizon=8, state_dim=5,
    hidden_size=24, output_dim=20, num_future_tokens=6, max_seq_len=40,
)  # fmt: skip
THOUGHT = "Your task is {instruction}. To identify the key objects for your task, locate them."


def units(dimensions):
    return ("q99",) * dimensions, ("m",) * dimensions


def config_of(head=SMALL, *, base=None, views=("frame",), takes_state=False, text="{instruction}"):
    base = base or demo()
    action, action_units = units(head.action_dim)
    state, state_units = units(head.state_dim if takes_state else 0)
    return QwenGR00TConfig(
        vision=base.vision,
        language=base.language,
        head=head,
        normalization=NormalizationConfig(
            action=action, state=state, action_units=action_units, state_units=state_units
        ),
        views=views,
        takes_state=takes_state,
        prompt=PromptConfig(text=text),
    )


def wide():
    """The published widths, two layers of each network; DiT-B and the demo's vocabulary."""
    base = shallow(full(), vision=2, language=2, spatial=2, head=1)
    head = FlowDiTConfig(num_layers=4, num_heads=12, head_dim=64, action_dim=7, action_horizon=16)
    return config_of(dataclasses.replace(head, state_dim=7), base=base, takes_state=True)


CONFIGS = {
    "one view": config_of(),
    "16 actions": config_of(dataclasses.replace(SMALL, action_horizon=16)),
    "state": config_of(takes_state=True),
    "an encoder that is not used": config_of(text=THOUGHT),
    "three views and a thought": config_of(
        views=("left", "right", "wrist"), takes_state=True, text=THOUGHT
    ),
    "all cross": config_of(dataclasses.replace(SMALL, interleave_self_attention=False)),
    "published widths": wide(),
}
INSTRUCTIONS = ("reach", "push the puck", " ".join(6 * ["open the drawer, then close it"]))


@pytest.fixture(scope="module")
def policies(tokenizer):
    return beside_libraries(CONFIGS, tokenizer, lambda name: IMAGE)


def observed(config, instruction, seed=0, size=(112, 112)):
    random = np.random.default_rng(seed)
    seen = {name: random.integers(0, 256, (*size, 3), np.uint8) for name in config.views}
    seen |= {"instruction": instruction, "noise": random.standard_normal(config.chunk, np.float32)}
    if config.takes_state:
        seen["state"] = random.standard_normal(config.state_dim, np.float32)
    return seen


@torch.no_grad()
def act(model, tokenizer, seen):
    config, parts = model.config, prompt(model.config, tokenizer)
    pictures = [seen[name] for name in config.views]
    state = torch.from_numpy(seen["state"]) if config.takes_state else None
    return model(
        [patches_of(picture) for picture in pictures],
        grid_of(*pictures[0].shape[:2], IMAGE),
        parts,
        encode_tail(tokenizer, parts.tail, parts.end_ids, seen["instruction"]),
        torch.from_numpy(seen["noise"]),
        state,
    ).numpy()


@torch.no_grad()
def by_libraries(oracle, seen, **more):
    return oracle(*oracle.prepare(**seen, **more)).numpy()


@pytest.mark.parametrize("instruction", INSTRUCTIONS)
@pytest.mark.parametrize("name", CONFIGS)
def test_actions_equal_those_of_the_libraries(policies, tokenizer, name, instruction):
    ours, oracle = policies(name)
    seen = observed(ours.config, instruction)
    got, want = act(ours, tokenizer, seen), by_libraries(oracle, seen)
    assert got.shape == want.shape == ours.config.chunk and got.dtype == np.float32
    assert relative_error(got, want) <= END_TO_END


@pytest.mark.parametrize("padding", [1, 40])
@pytest.mark.parametrize("name", ["state", "three views and a thought"])
def test_padding_on_the_left_changes_nothing(policies, tokenizer, name, padding):
    """As a shorter prompt in a batch has it: the mask and the positions of the libraries."""
    ours, oracle = policies(name)
    seen = observed(ours.config, "push the puck", seed=3)
    padded = oracle.prepare(**seen, padding=padding)
    assert padded.input_ids.shape[1] == oracle.prepare(**seen).input_ids.shape[1] + padding
    want = by_libraries(oracle, seen, padding=padding)
    assert relative_error(act(ours, tokenizer, seen), want) <= END_TO_END


@pytest.mark.parametrize("name", ["one view", "three views and a thought"])
def test_everything_observed_changes_the_actions(policies, tokenizer, name):
    ours, _ = policies(name)
    seen = observed(ours.config, "push the puck", seed=1)
    other = observed(ours.config, "open the drawer", seed=2)
    want = act(ours, tokenizer, seen)
    for key in seen:
        changed = act(ours, tokenizer, seen | {key: other[key]})
        assert relative_error(changed, want) > 10 * END_TO_END, key


def test_views_are_told_apart_by_their_order(policies, tokenizer):
    ours, _ = policies("three views and a thought")
    seen = observed(ours.config, "reach", seed=4)
    swapped = seen | {"left": seen["wrist"], "wrist": seen["left"]}
    assert relative_error(act(ours, tokenizer, swapped), act(ours, tokenizer, seen)) > END_TO_END


def test_a_prompt_is_one_turn_of_the_chat(policies):
    _, oracle = policies("three views and a thought")
    seen = observed(oracle.config, "reach", size=(28, 56))
    ids = oracle.prepare(**seen).input_ids[0].tolist()
    assert oracle.tokenizer.decode(ids, skip_special_tokens=False) == (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n"
        + 3 * "<|vision_start|><|image_pad|><|image_pad|><|vision_end|>"
        + "Your task is reach. To identify the key objects for your task, locate them.<|im_end|>\n"
        "<|im_start|>assistant\n"
    )


@pytest.mark.parametrize(("name", "words"), [("one view", "given"), ("state", "not given")])
def test_a_state_that_is_not_taken_or_not_given_is_refused(policies, tokenizer, name, words):
    ours, _ = policies(name)
    state = torch.zeros(5) if name == "one view" else None
    seen, parts = observed(ours.config, "reach"), prompt(ours.config, tokenizer)
    with pytest.raises(
        ValueError, match=f"^a state is {words}, and the configuration says takes_s"
    ):
        ours([patches_of(seen["frame"])], (8, 8), parts, (1,), torch.zeros(8, 7), state)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"views": ()}, "views must name at least one camera, each once"),
        ({"views": ("a", "a")}, r"each once, got \('a', 'a'\)"),
        ({"head": dataclasses.replace(SMALL, state_dim=None), "takes_state": True}, "no encoder"),
        ({"takes_state": True}, "normalization.state has 0 modes for 5 dimensions"),
        ({"head": dataclasses.replace(SMALL, action_dim=6)}, "action has 7 modes for 6 dimensions"),
        ({"model_type": "qwenoft"}, "model_type must be 'qwengr00t', got 'qwenoft'"),
        ({"language": full().language}, "must equal language.hidden_size=2048"),
    ],
)
def test_a_configuration_that_does_not_fit_together_is_refused(fields, words):
    with pytest.raises(ValueError, match=words):
        dataclasses.replace(CONFIGS["one view"], **fields)


def test_a_text_without_the_instruction_is_refused():
    with pytest.raises(ValueError, match="prompt.text must hold {instruction} once"):
        PromptConfig(text="grasp it")
