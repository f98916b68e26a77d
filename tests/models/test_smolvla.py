"""SmolVLA, cameras to actions, against the composition of transformers; and what it redoes."""

import dataclasses

import numpy as np
import pytest
import torch

import runtime
from models.families import CONFIGS
from models.init import image_of
from models.networks.expert import times_of
from models.smolvla.family import prompt, published_prompt
from models.smolvla.model import SmolVLA, actions
from models.smolvla.split import split
from models.stored import plain
from quant.apply import linear_layers
from quant.fold import fold
from quant.sites import find_sites
from runtime.errors import ObservationError
from tests.export.conftest import random_bundle
from tests.oracles import END_TO_END, MODULE, beside_libraries, relative_error, with_fields
from tests.quant.test_fold import made_up_statistics, rules_of
from tests.warm_and_cold import redone

TINY, THIN = CONFIGS["smolvla-tiny"](), CONFIGS["smolvla-thin"]()
POLICIES = {
    "two views": TINY,
    "one view": dataclasses.replace(TINY, views=("frame",)),
    "grouped heads": dataclasses.replace(
        TINY,
        language=dataclasses.replace(TINY.language, num_attention_heads=6, num_key_value_heads=2,
                                     mrope_section=(8, 0, 0)),
    ),
    "every third layer": dataclasses.replace(
        TINY,
        head=dataclasses.replace(TINY.head, self_attn_every_n_layers=3, num_inference_timesteps=1),
    ),
    "published widths": THIN,
}  # fmt: skip
INSTRUCTIONS = ("reach", " ".join(3 * ["open the drawer, then close it"]))


@pytest.fixture(scope="module")
def policies(tokenizer):
    return beside_libraries(POLICIES, tokenizer, lambda name: image_of(POLICIES[name]))


def observed(config, seed=0, size=(120, 160)):
    random = np.random.default_rng(seed)
    seen = {name: random.integers(0, 256, (*size, 3), np.uint8) for name in config.views}
    noises = config.head.action_horizon, config.head.max_action_dim
    return seen | {
        "state": random.standard_normal(config.state_dim, np.float32),
        "noise": random.standard_normal(noises, np.float32),
    }


def act(model, tokenizer, instruction, seen):
    parts = prompt(model.config, tokenizer)
    tail = parts.tail_ids(tokenizer, instruction)
    return actions(model, parts, image_of(model.config), tail, seen)


@torch.no_grad()
def by_libraries(oracle, instruction, seen, padding=0):
    return oracle(*oracle.prepare(instruction=instruction, padding=padding, **seen)).numpy()


@pytest.mark.parametrize("instruction", INSTRUCTIONS)
@pytest.mark.parametrize("name", POLICIES)
def test_actions_equal_those_of_the_libraries(policies, tokenizer, name, instruction):
    """Whose text may be padded, as LeRobot pads it to 48 tokens."""
    ours, oracle = policies(name)
    seen = observed(ours.config)
    want = by_libraries(oracle, instruction, seen, padding=7 * (instruction == "reach"))
    assert want.shape == ours.config.chunk
    assert relative_error(act(ours, tokenizer, instruction, seen), want) <= END_TO_END


@pytest.mark.parametrize("name", ["two views", "published widths"])
def test_tokens_of_a_picture_equal_those_of_the_libraries(policies, name):
    """Alone: where the language model hardly looks at them, actions would not tell."""
    ours, oracle = policies(name)
    side, size = ours.config.vision.image_size, ours.config.vision.patch_size
    picture = torch.from_numpy(np.random.default_rng(1).random((3, side, side), np.float32)) * 2 - 1
    n = side // size
    patches = picture.reshape(3, n, size, n, size).permute(1, 3, 0, 2, 4).flatten(2).flatten(0, 1)
    with torch.no_grad():
        want = oracle.connector(oracle.vision(picture[None]).last_hidden_state)[0]
        assert relative_error(ours.vlm.connector(ours.vlm.visual(patches)), want) <= MODULE


def test_every_input_moves_the_actions(policies, tokenizer):
    """Each token of each view, every number of the state, padded numbers of the noise too."""
    ours, _ = policies("two views")
    seen = observed(ours.config, size=(64, 64))
    before = act(ours, tokenizer, "reach", seen)

    def moves(name, at):
        moved = {**seen, name: seen[name].copy()}
        moved[name][at] = 255 - moved[name][at] if name in ours.config.views else -seen[name][at]
        return relative_error(act(ours, tokenizer, "reach", moved), before) > END_TO_END

    for view in ours.config.views:
        for row, column in ((0, 0), (0, 3), (3, 3)):
            at = np.s_[16 * row : 16 * row + 16, 16 * column : 16 * column + 16]
            assert moves(view, at)
    assert all(moves("state", number) for number in range(ours.config.state_dim))
    assert all(moves("noise", np.s_[0, n]) for n in range(ours.config.head.max_action_dim))


def test_an_action_follows_from_those_before_it_alone(policies, tokenizer):
    ours, _ = policies("two views")
    seen = observed(ours.config)
    before = act(ours, tokenizer, "reach", seen)
    moved = seen["noise"].copy()
    moved[3] *= -1
    after = act(ours, tokenizer, "reach", seen | {"noise": moved})
    assert (after[:3] == before[:3]).all()
    assert all((after[3:] != before[3:]).any(axis=1))


def test_what_is_left_over_is_where_the_sampler_ends_with_all_its_weight(policies, tokenizer):
    ours, _ = policies("two views")
    seen = observed(ours.config)
    left = np.random.default_rng(2).standard_normal(ours.config.chunk).astype(np.float32)
    weights = np.float32([[1], [1], [0.5], [0], [0], [0]])
    made = act(ours, tokenizer, "reach", seen | {"leftover": left, "weights": weights})
    free = act(ours, tokenizer, "reach", seen)
    assert relative_error(made[:2], left[:2]) <= MODULE
    nearer = np.linalg.norm(made[2] - left[2]), np.linalg.norm(free[2] - left[2])
    assert nearer[0] < nearer[1]


def test_steps_go_from_noise_on():
    assert times_of(CONFIGS["smolvla-base"]().head)[[0, 1, 9]] == pytest.approx([1, 0.9, 0.1])


def test_a_text_ends_with_its_line(tokenizer):
    parts = prompt(TINY, tokenizer)
    assert parts.before == ((), ()) and parts.end_ids == ()
    ids = parts.tail_ids(tokenizer, " push the puck ")
    assert ids == tuple(tokenizer.encode("push the puck\n", add_special_tokens=False).ids)
    assert published_prompt(CONFIGS["smolvla-base"]())[0].tail == "{instruction}\n"


def test_published_sizes_are_those_that_lerobot_computes():
    """By hand: 12 x (4 x 768 x 769 + 768 x 3073 + 3072 x 769 ...) and so on; LeRobot's paper says
    450 million, 100 of them the expert's, with 47 million of the token table."""
    with torch.device("meta"):
        model = SmolVLA(CONFIGS["smolvla-base"]())
    sizes = {
        part: sum(p.numel() for n, p in model.named_parameters() if n.startswith(part)) / 1e6
        for part in ("vlm.visual", "vlm.connector", "vlm.model", "action_head", "")
    }
    assert sizes["vlm.visual"] == pytest.approx(86.4, abs=0.1)
    assert sizes["vlm.connector"] == pytest.approx(11.8, abs=0.1)
    assert sizes["vlm.model"] == pytest.approx(47.3 + 15 * 9.83 + 0.61, abs=0.1)
    assert sizes["action_head"] == pytest.approx(98, abs=2)
    assert CONFIGS["smolvla-base"]().num_image_tokens == 128


@pytest.fixture(scope="module")
def bundle(shared_folder):
    return random_bundle(shared_folder, "smolvla-tiny")


LOOP = (*(f"euler_{k}" for k in range(4)), "made_actions", "denoised_actions", "actions")
BEHIND = ("prefix", "prefix_cross", "state_row", *LOOP)
TEXT = ("text_embeddings", "prefix_rotary", "prefix_mask", "state_rotary", "actions_behind_rotary")
REDONE = {
    "frame": {"frame_patches", "frame_vision", *BEHIND},
    "wrist": {"wrist_patches", "wrist_vision", *BEHIND},
    "instruction": {*TEXT, *BEHIND},
    "state": {"policy_state", "padded_state", "state_row", *LOOP},
    "noise": {"x_0", *LOOP},
}
"""As the table of families has it: a view redoes its tower and the language model's call, which
pictures and text share; the text that call; the state its row; the noise the loop."""


@pytest.mark.parametrize("changed", REDONE)
def test_a_new_input_redoes_what_the_table_says_and_no_more(bundle, changed):
    seen, other = (observed(TINY, seed=seed, size=(112, 112)) for seed in (0, 1))
    assert redone(bundle, seen, changed, other) == REDONE[changed]


def test_a_text_that_was_longer_in_training_is_refused(bundle):
    with (
        runtime.load(bundle) as policy,
        pytest.raises(ObservationError, match="at most|tokens"),
        policy.start(instruction=" ".join(60 * ["x"])) as episode,
    ):
        episode.act(observed(TINY, size=(112, 112)))


def test_a_call_with_room_for_more_takes_no_longer_text_than_in_training(policies):
    ours, _ = policies("two views")
    parts = published_prompt(TINY)[0]
    for slots, longest in ((100, 48), (30, 22)):
        graph = split(ours, parts, image_of(TINY), (112, 112), slots).graph
        assert graph.inputs["instruction"].shape == (longest,)


def test_factors_fold_into_what_writes_a_tensor_and_change_no_action(policies, tokenizer):
    """Values of the language model are read in the expert too: nothing may move into them."""
    ours, _ = policies("grouped heads")
    readers = [reader for site in find_sites(ours) for reader in site.readers]
    assert sorted(readers) == sorted(linear_layers(ours))
    seen = observed(ours.config)
    want = act(ours, tokenizer, "reach", seen)
    folded = fold(ours, rules_of(ours), made_up_statistics(ours))
    assert folded.num_folded >= 30
    assert relative_error(act(folded.model, tokenizer, "reach", seen), want) <= END_TO_END
    written = {w.module for site in find_sites(ours) for w in site.writers}
    for name in written:
        broken = plain(folded.model)
        broken.get_submodule(name).weight.copy_(ours.get_submodule(name).weight)
        error = relative_error(act(broken, tokenizer, "reach", seen), want)
        assert error > END_TO_END, f"{name}: {error:.1e}"


def test_several_chunks_at_once_are_each_its_own(policies, tokenizer):
    """The engine of a step is given all of them."""
    ours, _ = policies("two views")
    parts, image = prompt(TINY, tokenizer), image_of(TINY)
    many = split(ours, parts, image, (112, 112), 40, samples=3)
    spec = many.engines["euler"]
    random = np.random.default_rng(3)
    given = [
        torch.from_numpy(random.standard_normal(t.shape, np.float32)) for t in spec.inputs.values()
    ]
    given[list(spec.inputs).index("coefficients")][:2] = torch.tensor([0.25, 0.5])
    with torch.no_grad():
        whole = spec.module(*given)
        alone = torch.stack([spec.module(x, *given[1:]) for x in given[0]])
    assert whole.shape == (3, 6, 8)
    assert relative_error(whole, alone) <= MODULE


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"vision.num_heads": 5}, "vision.num_heads=5 must divide"),
        ({"vision.image_size": 72}, "vision.patch_size=16 must divide vision.image_size=72"),
        ({"vision.scale_factor": 3}, "vision.scale_factor=3 must divide the patches along a side"),
        ({"vision.out_hidden_size": 64}, "vision.out_hidden_size=64 must equal"),
        ({"language.num_hidden_layers": 1}, "language.num_hidden_layers must be at least 2"),
        ({"head.self_attn_every_n_layers": 1}, "must leave a layer that attends to the language"),
        ({"head.max_action_dim": 3}, "head.action_dim=4 must be at most head.max_action_dim=3"),
        ({"head.max_state_dim": 2}, "head.state_dim=3 must be at most head.max_state_dim=2"),
        ({"head.hidden_size": 71}, "head.hidden_size must be even"),
        ({"head.state_dim": 4}, "normalization.state has 3 modes"),
        ({"views": ("frame", "frame")}, "each once"),
        ({"prompt.text": "do it"}, "prompt.text must hold"),
        ({"prompt.max_length": 0}, "prompt.max_length must be from 1"),
        ({"model_type": "qwenoft"}, "model_type must be 'smolvla'"),
    ],
)
def test_a_configuration_that_does_not_fit_together_is_refused(changes, said):
    with pytest.raises(ValueError, match=said):
        with_fields(TINY, changes)
