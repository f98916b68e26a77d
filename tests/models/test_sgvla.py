"""SG-VLA, cameras to actions and to all it knows, against the composition of transformers."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from torch.nn import functional

import runtime
from export.measure import Modules, golden_of, made_up
from models.checkpoint import load_checkpoint
from models.families import CONFIGS, family_of
from models.init import image_of
from models.networks.auxiliary_heads import Doubling, JointTransformer
from models.random_weights import random_tensors
from models.sgvla.config import DepthConfig, LeavesConfig
from models.sgvla.family import prompt, published_prompt
from models.sgvla.model import SGVLA, predict
from models.sgvla.split import declare_leaves
from quant.sites import find_sites
from runtime.errors import ObservationError
from tests.export.conftest import random_bundle, random_checkpoint
from tests.oracles import END_TO_END, MODULE, beside_libraries, relative_error, with_fields
from tests.warm_and_cold import Expectation

TINY, THIN = CONFIGS["sgvla-tiny"](), CONFIGS["sgvla-thin"]()
LEAVES = ("position", "grasp", "object_pose", "joints", "segmentation")
POLICIES = {
    "two cameras": TINY,
    "each depth map behind its picture": dataclasses.replace(TINY, depth_order="beside"),
    "one camera": dataclasses.replace(TINY, views=("head",), depth_views=("head_depth",)),
    "other leaves, towers and depth": dataclasses.replace(
        TINY,
        vision=dataclasses.replace(
            TINY.vision,
            featurizer=dataclasses.replace(TINY.vision.featurizer, reg_tokens=2, depth=4),
            image_size=84,
        ),
        depth=DepthConfig(scale_m=2.0, missing=1.0, range_m=(0.5, 3.0)),
        leaves=LeavesConfig(
            hidden_size=16, position_dim=2, num_joints=5, joint_hidden_size=24, joint_layers=1,
            joint_intermediate_size=40, joint_heads=2, mask_widths=(8, 12, 4),
            mask_view="hand_depth",
        ),
    ),
    "published widths": dataclasses.replace(
        THIN, views=("head",), depth_views=("head_depth",)
    ),
}  # fmt: skip
INSTRUCTIONS = ("reach", "Push the PUCK", " ".join(6 * ["open the drawer, then close it"]))


@pytest.fixture(scope="module")
def policies(tokenizer):
    return beside_libraries(POLICIES, tokenizer, lambda name: image_of(POLICIES[name]))


def observed(config, seed=0, size=(120, 160)):
    random = np.random.default_rng(seed)
    seen = {name: random.integers(0, 256, (*size, 3), np.uint8) for name in config.views}
    for name in config.depth_views:
        depth_m = random.uniform(0.2, 4, size).astype(np.float32)
        seen[name] = np.where(random.random(size) < 0.1, np.float32(0), depth_m)
    return seen | {"noise": random.standard_normal(config.chunk, np.float32)}


def act(model, tokenizer, instruction, seen):
    parts = prompt(model.config, tokenizer)
    tail = parts.tail_ids(tokenizer, instruction)
    return predict(model, parts, image_of(model.config), tail, seen)


@pytest.mark.parametrize(
    ("name", "instruction"),
    [
        (name, instruction)
        for name in POLICIES
        for instruction in (INSTRUCTIONS if name != "published widths" else INSTRUCTIONS[1:2])
    ],
)
def test_actions_and_leaves_equal_those_of_the_libraries(policies, tokenizer, name, instruction):
    ours, oracle = policies(name)
    seen = observed(ours.config)
    got = act(ours, tokenizer, instruction, seen)
    with torch.no_grad():
        given = oracle.prepare(instruction=instruction, **seen)
        want, leaves = oracle(*given), oracle.leaves(*given[:2])
    assert want.shape == ours.config.chunk and set(leaves) == set(LEAVES)
    assert relative_error(got.actions_TA, want) <= END_TO_END
    for leaf, value in leaves.items():
        assert relative_error(getattr(got.leaves, leaf), value) <= END_TO_END, leaf


def test_every_picture_and_the_noise_move_the_actions(policies, tokenizer):
    """At both ends of each picture, and where a depth map was not measured."""
    ours, _ = policies("two cameras")
    seen = observed(ours.config, size=(56, 56))
    before = act(ours, tokenizer, "reach", seen)
    for name in ours.config.pictures:
        for row, column in ((0, 0), (3, 3)):
            moved = {**seen, name: seen[name].copy()}
            patch = moved[name][14 * row : 14 * row + 14, 14 * column : 14 * column + 14]
            patch[:] = 255 - patch if name in ours.config.views else 0
            after = act(ours, tokenizer, "reach", moved)
            assert relative_error(after.actions_TA, before.actions_TA) > END_TO_END
            for leaf in LEAVES[:4]:
                one, other = (getattr(x.leaves, leaf) for x in (after, before))
                assert relative_error(one, other) > 1e-6, (name, leaf)
    moved = {**seen, "noise": -seen["noise"]}
    assert relative_error(act(ours, tokenizer, "reach", moved).actions_TA, before.actions_TA) > 0.1


def test_leaves_do_not_move_with_the_instruction_and_actions_do(policies, tokenizer):
    """The text stands behind the pictures, and the decoder is causal."""
    ours, _ = policies("two cameras")
    seen = observed(ours.config)
    one, other = (act(ours, tokenizer, said, seen) for said in ("reach", "open the drawer"))
    assert relative_error(one.actions_TA, other.actions_TA) > END_TO_END
    for leaf in LEAVES:
        # Products of another number of rows are added up in another order.
        assert relative_error(getattr(one.leaves, leaf), getattr(other.leaves, leaf)) <= MODULE


def test_samples_are_those_of_each_noise_alone(policies, tokenizer):
    ours, _ = policies("two cameras")
    seen = observed(ours.config)
    noises = np.stack([seen["noise"], -seen["noise"]])
    both = act(ours, tokenizer, "reach", {**seen, "noise": noises}).actions_TA
    for noise, got in zip(noises, both, strict=True):
        want = act(ours, tokenizer, "reach", {**seen, "noise": noise}).actions_TA
        assert relative_error(got, want) <= MODULE


def test_the_expert_has_as_many_parameters_as_published():
    """24 layers of 512 by 14 + 14 + 2 + 2 heads of 64, and 3 x 512 x 2048: 100.7 M."""
    with torch.device("meta"):
        head = SGVLA(CONFIGS["sgvla-fetch"]()).action_head
    weights = sum(p.numel() for n, p in head.layers.named_parameters() if n.endswith("proj.weight"))
    assert weights == 24 * (512 * 64 * (14 + 14 + 2 + 2) + 3 * 512 * 2048)
    assert round(weights / 1e6, 1) == 100.7


def test_what_is_asked_is_put_in_small_letters_and_the_text_is_one(policies, tokenizer):
    ours, _ = policies("two cameras")
    parts = prompt(ours.config, tokenizer)
    ids = parts.tail_ids(tokenizer, "  Push the PUCK ")
    c = ours.config.prompt
    whole = c.before + c.text.replace("{instruction}", "push the puck")
    assert [*parts.before[0], *ids] == tokenizer.encode(whole, add_special_tokens=False).ids
    assert parts.before[1:] == ((), (), ()) and parts.end_ids == ()
    assert published_prompt(ours.config)[0].before == ((0,), (), (), ())


@pytest.mark.parametrize("size", [(2, 2), (4, 6), (6, 4)])
def test_a_doubling_equals_torch_s_transposed_convolution(size):
    x = torch.randn(*size, 5, generator=torch.Generator().manual_seed(0))
    layer = Doubling(5, 7)
    layer.load_state_dict(dict(random_tensors(layer, 0)))
    with torch.no_grad():
        want = functional.conv_transpose2d(
            x.permute(2, 0, 1), layer.weight, layer.bias, stride=2, padding=1
        )
        assert relative_error(layer(x), want.permute(1, 2, 0)) <= MODULE


def test_each_joint_has_a_token_of_its_own_and_the_order_of_rows_does_not_count():
    model = JointTransformer(
        8, num_joints=3, hidden_size=8, intermediate_size=12, num_layers=2, num_heads=2
    )
    model.load_state_dict(dict(random_tensors(model, 0)), assign=True)
    rows = torch.randn(5, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        said, turned = model(rows), model(rows.flip(0))
    assert relative_error(turned, said) <= MODULE
    assert len({round(float(x), 4) for x in said}) == 3


def test_nothing_is_folded_into_values_that_two_networks_read():
    with torch.device("meta"):
        sites = find_sites(SGVLA(TINY))
    read = {reader: site for site in sites for reader in site.readers}
    for layers in ("language_model.model.layers", "action_head.layers"):
        for index in range(3):
            layer = f"{layers}.{index}"
            assert read[f"{layer}.self_attn.o_proj"].writers == ()
            assert len(read[f"{layer}.self_attn.k_proj"].readers) == 3
            assert read[f"{layer}.mlp.down_proj"].writers[0].module == f"{layer}.mlp.up_proj"
    assert read["joint_head.blocks.1.attn.proj"].writers[0].first == 64


@pytest.fixture(scope="module")
def folder(shared_folder):
    return random_checkpoint(shared_folder, "sgvla-tiny")


@pytest.fixture(scope="module")
def bundle(shared_folder):
    return random_bundle(shared_folder, "sgvla-tiny")


@pytest.fixture(scope="module")
def policy(bundle):
    with runtime.load(bundle) as loaded:
        yield loaded


@pytest.fixture(autouse=True)
def fresh(request):
    if "policy" in request.fixturenames:
        request.getfixturevalue("policy").forget()


def small(seed=0):
    return observed(TINY, seed=seed, size=(112, 112))


VIEW = ("{}_patches", "{}_featurizer", "{}_fused_featurizer", "{}_projector", "read_{}")
TEXT = ("suffix_embeddings", "suffix_rotary", "suffix_mask", "padding", "action_rotary")
LOOP = ("euler_0", "euler_1", "euler_2", "euler_3", "denoised_actions", "actions")


def view(name, *later):
    return {s.format(name) for s in VIEW} | {f"read_{n}" for n in later} | {"suffix", *LOOP}


REDONE = {
    "head": view("head", "hand", "head_depth", "hand_depth"),
    "hand": view("hand", "head_depth", "hand_depth"),
    "head_depth": view("head_depth", "hand_depth"),
    "hand_depth": view("hand_depth"),
    "instruction": {*TEXT, "suffix", *LOOP},
    "noise": {"x_0", *LOOP},
    "leftover": {"leftover_actions", *LOOP},
}
"""As the table of families has it: a view redoes its towers, its call and those behind it; the
text its own call; both the loop; the noise nothing but the loop."""


@pytest.mark.parametrize("changed", REDONE)
def test_a_new_input_redoes_what_the_table_says_and_no_more(policy, changed):
    seen, other = small(), small(seed=1)
    seen["leftover"] = np.zeros((4, 6), np.float32)
    other["leftover"] = np.full((4, 6), 0.5, np.float32)
    with policy.start(instruction="reach") as episode:
        episode.act(seen)
        if changed == "instruction":
            episode.say("push the puck")
        else:
            seen[changed] = other[changed]
        episode.act(seen)
        assert set(episode.stats.last_s) == REDONE[changed]
        episode.act(seen)
        assert not episode.stats.last_s


def test_actions_are_the_same_bits_whatever_else_is_asked_for(bundle):
    """Of two policies side by side: one is asked for all leaves in every tick, one for none."""
    random = np.random.default_rng(0)
    with runtime.load(bundle) as quiet, runtime.load(bundle) as asked:
        both = [p.start(instruction="reach", seed=3) for p in (quiet, asked)]
        seen = small()
        for tick in range(12):
            name = str(random.choice([*TINY.pictures, "say", "nothing"]))
            if name == "say":
                for episode in both:
                    episode.say(f"push puck {tick}")
            elif name != "nothing":
                seen[name] = small(seed=tick + 1)[name]
            given = {n: v for n, v in seen.items() if n != "noise"}  # which is drawn anew
            one, other = (episode.act(given).actions for episode in both)
            assert one.tobytes() == other.tobytes()
            for leaf in random.permutation(LEAVES):
                both[1].ask(str(leaf))


def test_a_tick_that_asks_for_no_leaf_runs_what_the_actions_need_alone(policy, bundle):
    """All of it, worked out from the manifest; and no leaf comes unasked. Constants were there."""
    expectation = Expectation(bundle)
    assert not expectation.needed & set(LEAVES)
    with policy.start(instruction="reach") as episode:
        answer = episode.act(small())
        wanted = expectation.stages(set(policy.graph.inputs))
        stages = {stage.name for stage in policy.graph.stages}
        assert set(episode.stats.last_s) == wanted < expectation.needed == stages - set(LEAVES)
        assert not answer.leaves
        assert not any(episode.stats.num_runs[leaf] for leaf in LEAVES)


@pytest.mark.parametrize("leaf", LEAVES)
def test_a_leaf_that_is_asked_for_runs_its_engine_and_nothing_else(policy, leaf):
    with policy.start(instruction="reach") as episode:
        episode.act(small())
        before = dict(episode.stats.num_runs)

        def ran():
            now = episode.stats.num_runs
            return {name: now[name] - before[name] for name in now}

        episode.ask(leaf)
        assert {name for name, count in ran().items() if count} == {leaf}
        episode.ask(leaf)
        assert ran()[leaf] == 1, "what it read stayed what it was"
        episode.say("push the puck")  # behind the pictures
        episode.act(small())
        episode.ask(leaf)
        assert ran()[leaf] == 1
        episode.act(small(seed=1))
        episode.ask(leaf)
        assert ran()[leaf] == 2


def test_leaves_of_a_bundle_are_those_of_the_libraries(policy, folder):
    checkpoint = load_checkpoint(folder)
    oracle = family_of(TINY).reference(checkpoint.model, checkpoint.tokenizer, checkpoint.image)
    seen = small(seed=5)
    with torch.no_grad():
        want = oracle.leaves(*oracle.prepare(instruction="reach", **seen)[:2])
    with policy.start(instruction="reach") as episode:
        episode.act(seen)
        for leaf in LEAVES:
            assert relative_error(episode.ask(leaf), want[leaf]) <= END_TO_END, leaf


def test_a_bundle_s_own_check_asks_for_leaves(policy):
    """Those of another observation lie where it looks."""
    with policy.start(instruction="reach") as episode:
        episode.act(small(seed=9))
        for leaf in LEAVES:
            episode.ask(leaf)
    assert {verdict.name for verdict in policy.check() if verdict.passed} >= set(LEAVES)


def test_the_bundle_says_what_its_leaves_are(bundle):
    outputs = json.loads((bundle / "manifest.json").read_text())["graph"]["outputs"]
    assert list(outputs) == ["actions", *LEAVES]
    assert outputs["object_pose"]["units"] == ["m", "m", "m", "qw", "qx", "qy", "qz"]
    assert outputs["joints"]["units"] == ["rad"] * 3 and "every" not in outputs["joints"]
    assert outputs["grasp"]["means"] == {"is": "grasp"}
    assert outputs["joints"]["means"]["names"] == ["shoulder", "", "wrist"]
    assert [name for name, output in outputs.items() if "means" in output] == ["grasp", "joints"]
    unnamed = dataclasses.replace(TINY.leaves, joint_names=())
    found = declare_leaves(dataclasses.replace(TINY, leaves=unnamed))
    assert found["joints"].means is None and len(found["joints"].units) == 3


def test_what_is_open_is_said_in_the_graph(policies, tokenizer):
    """Order of the prompt, of the quaternion, and how actions are normalized."""
    ours, _ = policies("each depth map behind its picture")
    c = dataclasses.replace(
        ours.config,
        leaves=dataclasses.replace(TINY.leaves, quaternion="xyzw"),
        normalization=dataclasses.replace(TINY.normalization, action=("min_max",) * 5),
    )
    assert c.pictures == ("head", "head_depth", "hand", "hand_depth")
    changed = SGVLA(c)
    changed.load_state_dict(ours.state_dict(), assign=True)
    parts = family_of(c).split(changed, prompt(c, tokenizer), image_of(c), (112, 112), 100)
    assert list(parts.fixed) == [*(f"read_{name}" for name in c.pictures), "suffix"]
    assert parts.graph.outputs["object_pose"].units[3:] == ("qx", "qy", "qz", "qw")
    (stage,) = (s for s in parts.graph.stages if s.function == "unnormalize")
    assert stage.params["modes"] == ["min_max"] * 5
    with pytest.raises(ValueError, match="there are 1 depth_views for 2 views"):
        dataclasses.replace(c, depth_views=("hand_depth",))


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (np.full((112, 112), -1.0, np.float32), "head_depth holds -1.0 m"),
        (np.full((112, 112), np.nan, np.float32), "head_depth holds NaN"),
        (np.full((112, 112), 1500, np.uint16), "0.001 for millimetres"),
        (np.ones((56, 56), np.float32), r"head_depth must be \[112, 112\], got \[56, 56\]"),
    ],
)
def test_a_depth_map_that_cannot_be_is_refused(policy, value, said):
    with policy.start(instruction="reach") as episode:
        with pytest.raises(ObservationError, match=said):
            episode.act({**small(), "head_depth": value})
        episode.act({**small(), "head_depth": np.zeros((112, 112), np.float32)})


def test_several_samples_are_cut_into_the_same_engines(folder):
    checkpoint = load_checkpoint(folder)
    parts = family_of(TINY).split(
        checkpoint.model, checkpoint.parts, checkpoint.image, (112, 112), 160, samples=3
    )
    golden = golden_of(checkpoint, made_up(checkpoint, (112, 112)), seed=2, samples=3)
    made = Modules(checkpoint, parts).tensors(golden)
    seen = {n: v for n, v in golden.items() if n not in ("instruction", "embodiment")}
    tail = checkpoint.tail_ids(str(golden["instruction"]))
    want = predict(checkpoint.model, checkpoint.parts, checkpoint.image, tail, {
        n: v for n, v in seen.items() if n != "leftover"
    }).actions_TA  # fmt: skip
    assert relative_error(made["x_4"], want) <= END_TO_END


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"vision.image_size": 70}, "must be even, got 70/14"),
        ({"vision.out_hidden_size": 64}, "vision.out_hidden_size=64 must equal"),
        ({"head.num_hidden_layers": 2}, "head.num_hidden_layers must be that of the decoder"),
        ({"head.head_dim": 16}, "language.head_dim=32; got 16"),
        ({"head.num_key_value_heads": 4}, "language.num_key_value_heads=2; got 4"),
        ({"head.num_attention_heads": 3}, "head.num_key_value_heads=2 must divide"),
        ({"head.hidden_size": 63}, "head.hidden_size must be even, got 63"),
        ({"head.num_inference_timesteps": 0}, "head.num_inference_timesteps must be from 1"),
        ({"head.action_dim": 4}, "normalization.action has 5 modes"),
        ({"views": ("head", "head")}, "each once"),
        ({"depth_views": ("head", "hand")}, "each once"),
        ({"depth.scale_m": 0.0}, "depth.scale_m must be a finite number above 0"),
        ({"depth.missing": 2.0}, "depth.missing must be from 0 to 1"),
        ({"depth.range_m": (2.0, 2.0)}, "a nearest and a farther depth in metres, or null"),
        ({"depth.range_m": (-1.0, 2.0)}, "a nearest and a farther depth"),
        ({"depth.range_m": (1.0, float("inf"))}, "a nearest and a farther depth"),
        ({"depth.range_m": (1.0,)}, "a nearest and a farther depth"),
        ({"leaves.mask_view": "wrist"}, "leaves.mask_view must be one of"),
        ({"leaves.mask_widths": ()}, "leaves.mask_widths must be one at least"),
        ({"leaves.joint_heads": 5}, "leaves.joint_heads=5 must divide"),
        ({"leaves.num_joints": 0}, "leaves.num_joints must be at least 1"),
        ({"leaves.joint_names": ("a", "b")}, "must name 3 joints or none, got 2"),
        ({"prompt.text": "do it"}, "prompt.text must hold"),
        ({"model_type": "vlaadapter"}, "model_type must be 'sgvla'"),
    ],
)
def test_a_configuration_that_does_not_fit_together_is_refused(changes, said):
    with pytest.raises(ValueError, match=said):
        with_fields(TINY, changes)
