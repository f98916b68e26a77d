"""Folders of VLA-Adapter Pro: what is written is read back, and each rule by which one is read."""

import dataclasses
import json
import re
import shutil

import numpy as np
import pytest
import torch
from safetensors import safe_open

from models.checkpoint import load_checkpoint, normalizations, open_checkpoint
from models.families import family_of
from models.init import image_of
from models.layouts import writers
from models.layouts.prismatic_robots import ROBOTS, units
from models.random_weights import random_weights
from models.sources import parameter_shapes
from models.vlaadapter.presets import libero
from runtime.normalization import MODES
from tests.models import prismatic_folders
from tests.models.prismatic_folders import (
    CONFIG,
    HEAD,
    OWN,
    PREPROCESSOR,
    PRESETS,
    PROPRIO,
    SEED,
    STATISTICS,
    WEIGHTS,
    edit_part,
    edit_tensors,
    read,
    synthesized,
)
from tests.models.starvla_runs import numbers
from tests.models.synthesized import command, edit_json


@pytest.fixture(autouse=True)
def family(monkeypatch):
    prismatic_folders.register(monkeypatch)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Folders by configuration, made once; not to be changed."""
    base, kept = tmp_path_factory.mktemp("folders"), {}

    def folder(name="like-libero"):
        if name not in kept:
            kept[name] = synthesized(base / name, name)
        return kept[name]

    return folder


@pytest.fixture
def folder(written, tmp_path):
    """One of one's own to change."""
    return lambda name="like-libero": shutil.copytree(written(name), tmp_path / "folder")


def plain(config):
    return dataclasses.replace(config, description="", license="")


def same(opened, name="like-libero"):
    drawn = random_weights(PRESETS[name](), SEED, outlier_channels=2, dtype=torch.bfloat16)
    assert opened.weights.keys() == drawn.keys()
    return all(torch.equal(opened.weights[n].read(), drawn[n].read()) for n in drawn)


@pytest.mark.parametrize("name", PRESETS)
def test_a_folder_comes_back_bit_for_bit(written, name):
    opened, config = open_checkpoint(written(name)), PRESETS[name]()
    assert plain(opened.config) == plain(config) and same(opened, name)
    assert opened.image == image_of(config)
    assert {s.dtype for s in opened.weights.values()} == {torch.bfloat16}
    assert [file.name for file in opened.weights.files] == sorted([HEAD, WEIGHTS, PROPRIO])
    assert len(opened.statistics) == 1 and opened.config.license.startswith("MIT")


def test_its_actions_are_those_of_the_weights_that_it_was_written_from(written):
    checkpoint = load_checkpoint(written())
    family, config = family_of(checkpoint.config), PRESETS["like-libero"]()
    model = family.model(config)
    drawn = random_weights(config, SEED, outlier_channels=2, dtype=torch.bfloat16)
    model.load_state_dict({name: source.read().float() for name, source in drawn.items()})
    random = np.random.default_rng(0)
    seen = {view: random.integers(0, 256, (50, 70, 3), np.uint8) for view in config.views}
    seen["state"] = random.standard_normal(8).astype(np.float32)
    tail = checkpoint.tail_ids("push it")
    got, want = (
        family.actions(one, checkpoint.parts, checkpoint.image, tail, seen)
        for one in (checkpoint.model, model)
    )
    assert np.array_equal(got, want) and got.shape == (8, 7) and np.ptp(got, axis=0).min() > 0


def test_what_the_authors_store_and_never_use_is_written_and_left_out(written):
    """timm's names for a block, a norm and a pooled tower, by hand."""
    opened = open_checkpoint(written())
    block = {
        f"{part}.{of}"
        for part in ("norm1", "norm2", "attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
        for of in ("weight", "bias")
    }
    first, second = "vision_backbone.featurizer.", "vision_backbone.fused_featurizer."
    pool = {f"{p}.{of}" for p in ("q", "kv", "proj", "norm", "mlp.fc1", "mlp.fc2")
            for of in ("weight", "bias")}  # fmt: skip
    want = {f"{tower}blocks.2.{name}" for tower in (first, second) for name in block}
    want |= {f"{first}blocks.2.ls{number}.scale_factor" for number in (1, 2)}
    want |= {f"{tower}norm.{of}" for tower in (first, second) for of in ("weight", "bias")}
    want |= {f"{second}attn_pool.{name}" for name in pool | {"latent"}}
    want |= {"language_model.lm_head.weight"}
    begin = "module.model.mlp_resnet_blocks"
    want |= {f"{begin}.{n}.film_gen.0.{of}" for n in range(3) for of in ("weight", "bias")}
    assert {u.name for u in opened.weights.unused} == want
    assert {u.why for u in opened.weights.unused} == {
        "the tower is read behind the block before it", "the tower is read before its norm",
        "the tower is read patch by patch", "the authors' code skips it",
        "speaks words, of which this policy says none",
    }  # fmt: skip
    with safe_open(written() / WEIGHTS, "pt") as held:
        assert held.get_tensor(f"{second}attn_pool.kv.weight").shape == (192, 96)
        assert held.get_tensor(f"{first}blocks.2.mlp.fc1.weight").shape == (128, 64)
        names = ("lm_head", "model.embed_tokens")
        tied = [held.get_tensor(f"language_model.{name}.weight") for name in names]
        assert torch.equal(*tied)
    film = torch.load(written() / HEAD, weights_only=True)[f"{begin}.0.film_gen.0.weight"]
    assert film.shape == (256, 128)


def test_but_for_the_last_blocks_which_tell_the_depth_it_need_not_be_there(folder):
    made = folder()
    names = {u.name for u in open_checkpoint(made).weights.unused}
    unused = {name for name in names if ".blocks.2." not in name}

    def drop(state):
        for name in unused & state.keys():
            del state[name]

    edit_tensors(made, drop)
    edit_part(made, drop)
    opened = open_checkpoint(made)
    assert same(opened) and {u.name for u in opened.weights.unused} == names - unused


def test_shards_are_read_as_one_file_is(tmp_path, monkeypatch):
    monkeypatch.setattr(writers, "SHARD_BYTES", 1 << 20)
    made = synthesized(tmp_path / "made", "like-libero")
    assert len([*made.glob("model-0000?-of-0000?.safetensors")]) > 2
    assert not (made / WEIGHTS).exists() and same(open_checkpoint(made))
    assert "weights: 3 of safetensors" in "\n".join(open_checkpoint(made).said)
    monkeypatch.undo()
    prismatic_folders.register(monkeypatch)
    synthesized(made, "like-libero")  # in the place of its own shards
    assert not [*made.glob("*index.json")] and same(open_checkpoint(made))


@pytest.mark.parametrize("wrapped", [(), (HEAD,), (PROPRIO,), (HEAD, PROPRIO)])
def test_names_of_both_parts_are_read_with_a_wrapper_and_without(folder, wrapped):
    made = folder()
    for name in (HEAD, PROPRIO):
        begin = "module." if name in wrapped else ""
        edit_part(
            made, lambda s, b=begin: {b + n.removeprefix("module."): v for n, v in s.items()}, name
        )
        held = torch.load(made / name, weights_only=True)
        assert all(n.startswith("module.") == (name in wrapped) for n in held)
    assert same(open_checkpoint(made))


@pytest.mark.parametrize("name", ["action_head--latest_checkpoint.pt",
                                  "action_head--150000_checkpoint.pt"])  # fmt: skip
def test_a_part_is_found_by_the_authors_rule_and_other_files_are_passed_over(folder, name):
    made = folder()
    (made / HEAD).rename(made / name)
    for beside in ("config.json.back.20250921_125658", "modeling_prismatic.py", "README.md"):
        (made / beside).write_text("{}")
    opened = open_checkpoint(made)
    assert same(opened) and any(name in line for line in opened.said)


def test_config_check_says_what_a_folder_is(written, capsys):
    assert command("config", "--check", written()) == 0
    said = capsys.readouterr().out
    for line in (
        "policy: VLA-Adapter, Pro", f"weights: 1 of safetensors, {HEAD}, {PROPRIO}",
        "head: 3 blocks of width 128", "queries: 6", "views: frame, wrist",
        "actions: 8 x 7: 6 bounds_q99, 1 identity", "state: 8 bounds_q99",
        "statistics: libero_spatial_no_noops", "from the authors' constants of libero\n",
        "those of the authors' evaluation", "sound\n",
        "language  3 layers of width 128, vocabulary of 512",
    ):  # fmt: skip
        assert line in said


def test_import_writes_a_folder_of_our_own(written, tmp_path, capsys):
    out = tmp_path / "out"
    assert command("import", written(), "--out", out) == 0
    said = capsys.readouterr().out
    assert "policy: VLA-Adapter, Pro" in said
    assert f"film_gen.0.bias of {HEAD}: the authors' code skips it" in said
    made, own = load_checkpoint(written()), load_checkpoint(out)
    assert own.config == made.config and own.image == made.image
    assert own.statistics == made.statistics and own.sha256 != made.sha256
    for name, tensor in own.model.state_dict().items():
        assert torch.equal(tensor, made.model.state_dict()[name])


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """A folder of the published sizes, of holes: its tensors read as zeros."""
    made, config = tmp_path_factory.mktemp("published"), libero()
    with pytest.MonkeyPatch.context() as patch:
        prismatic_folders.register(patch)
        small = synthesized(made / "small", "like-libero")
    for name in (PREPROCESSOR, STATISTICS, CONFIG, "tokenizer.json"):
        shutil.copyfile(small / name, made / name)
    shapes = parameter_shapes(config)
    parts = {"action_head.": HEAD, "proprio_projector.": PROPRIO}
    for begin, name in parts.items():
        inside = {n.removeprefix(begin): shapes.pop(n) for n in [*shapes] if n.startswith(begin)}
        writers.lay_out(made / name, {n: (s, torch.bfloat16) for n, s in inside.items()})
    towers = {"featurizer": 22, "fused_featurizer": 25}
    for last in (f"vision_backbone.{tower}.blocks.{n}." for tower, n in towers.items()):
        # And the block that is never run, behind the last that is.
        for name in [name for name in shapes if name.startswith(last)]:
            head, number, rest = re.fullmatch(r"(.*blocks\.)(\d+)(\..*)", name).groups()
            shapes[f"{head}{int(number) + 1}{rest}"] = shapes[name]
    header, end = {}, 0
    for name, shape in shapes.items():
        start, end = end, end + 2 * int(np.prod(shape))
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [start, end]}
    words = json.dumps(header).encode()
    with (made / WEIGHTS).open("wb") as file:
        file.write(len(words).to_bytes(8, "little") + words)
        file.truncate(8 + len(words) + end)
    image = read(small / PREPROCESSOR)
    image |= {
        "input_sizes": [[3, 224, 224]] * 2,
        "means": [[0.485, 0.456, 0.406], [0.5] * 3], "stds": [[0.229, 0.224, 0.225], [0.5] * 3],
        "tvf_crop_params": [{"output_size": [224, 224]}] * 2,
    }  # fmt: skip
    for params in image["tvf_resize_params"]:
        params["size"] = [224, 224]
    (made / PREPROCESSOR).write_text(json.dumps(image))
    return made


@pytest.mark.parametrize("text", [None, {}, {"rope_theta": 1e6}, {"vocab_size": 151936,
    "num_attention_heads": 14, "rms_norm_eps": 1e-6, "rope_theta": 1000000.0}])  # fmt: skip
def test_the_published_sizes_need_no_file_of_ones_own(published, text):
    def edit(raw):
        raw.pop("text_config", None)
        raw |= {"image_sizes": [224, 224]} | ({} if text is None else {"text_config": text})

    edit_json(published / CONFIG, edit)
    opened = open_checkpoint(published)
    assert plain(opened.config) == plain(libero()) and not (published / OWN).exists()
    notes = [line for line in opened.said if "Qwen2.5-0.5B's are taken" in line]
    assert len(notes) == (len(text or {}) < 4)
    if text == {"rope_theta": 1e6}:
        assert notes[0].startswith("note: num_attention_heads, rms_norm_eps of the decoder: not")


def rename_statistics(raw, **robots):
    raw.clear()
    raw.update(robots)


@pytest.mark.parametrize(
    ("names", "robot"),
    [
        (("libero_10_no_noops",), "libero"),
        (("libero_goal_no_noops", "libero_object_no_noops"), "libero"),
        (("my_LIBERO_data",), "libero"),
        (("calvin_abc_rlds",), "calvin"),
    ],
)
def test_the_robot_is_told_by_the_names_of_the_statistics(folder, names, robot):
    made = folder()
    mask = [True] * 6 + [False]
    edit_json(made / STATISTICS, lambda raw: rename_statistics(raw, **{
        name: {"action": {**numbers(7, n), "mask": mask}, "proprio": numbers(8, n + 9),
               "num_transitions": 3} for n, name in enumerate(names)}))  # fmt: skip
    opened = open_checkpoint(made)
    assert set(opened.statistics) == set(names)
    n = opened.config.normalization
    assert n.state_units == units(ROBOTS[robot].state)
    assert n.action == ("bounds_q99",) * 6 + ("identity",)
    entry = opened.statistics[names[-1]]
    assert set(entry) == {"action", "state"} and entry["action"]["mask"] == mask
    assert entry["state"] == numbers(8, len(names) + 8)
    assert f"from the authors' constants of {robot}" in "\n".join(opened.said)


def test_statistics_without_a_mask_normalize_every_action(folder):
    made = folder()
    edit_json(made / STATISTICS, lambda raw: [e["action"].pop("mask") for e in raw.values()])
    assert open_checkpoint(made).config.normalization.action == ("bounds_q99",) * 7
    edit_json(made / STATISTICS, lambda raw: [
        e["proprio"].update(mask=[True] * 8) for e in raw.values()])  # fmt: skip
    assert "mask" not in open_checkpoint(made).statistics["libero_spatial_no_noops"]["state"]


def test_numbers_go_in_and_out_as_the_authors_formulas_have_them(folder):
    """`normalize_proprio` and `_unnormalize_actions`, in float64."""
    made, robot, random = folder(), "libero_spatial_no_noops", np.random.default_rng(3)
    action, proprio = numbers(7, 1), numbers(8, 2)
    mask = np.array([True] * 6 + [False])
    entry = {"action": {**action, "mask": mask.tolist()}, "proprio": proprio}
    edit_json(made / STATISTICS, lambda raw: rename_statistics(raw, **{robot: entry}))
    opened = open_checkpoint(made)
    state, answer = normalizations(opened.config, opened.statistics[robot], robot)
    x = random.normal(size=8).astype(np.float32)
    low, high = np.array(proprio["q01"]), np.array(proprio["q99"])
    want = np.clip(2 * (x - low) / (high - low + 1e-8) - 1, -1, 1)
    # A few roundings of float32 on numbers up to 3.
    assert np.abs(state.to_policy(x) - want).max() < 2e-6 and np.abs(want).max() == 1
    y = random.normal(size=(8, 7)).astype(np.float32)
    low, high = np.array(action["q01"]), np.array(action["q99"])
    want = np.where(mask, 0.5 * (y + 1) * (high - low + 1e-8) + low, y)
    assert np.abs(answer.to_robot(y) - want).max() < 4e-6


ALOHA = {"action_dim": 14, "action_horizon": 25, "state_dim": 14}


def test_two_arms_are_told_by_their_constants(tmp_path, monkeypatch):
    robot = ROBOTS["aloha"]
    base = PRESETS["tiny"]()
    modes = ("bounds",) * 14
    config = dataclasses.replace(
        base,
        head=dataclasses.replace(base.head, **ALOHA),
        normalization=dataclasses.replace(
            base.normalization, action=modes, state=modes,
            action_units=units(robot.action), state_units=units(robot.state),
        ),
        views=("frame", "left_wrist", "right_wrist"),
    )  # fmt: skip
    monkeypatch.setitem(PRESETS, "two-arms", lambda: config)
    prismatic_folders.register(monkeypatch)
    made = synthesized(tmp_path / "made", "two-arms")
    assert [*read(made / STATISTICS)] == ["aloha1_fold_shirt_30_demos"]
    assert read(made / OWN) == {"tower_heads": [4, 4]}
    assert plain(open_checkpoint(made).config) == plain(config)


def test_what_the_table_says_are_the_authors_constants():
    """prismatic/vla/constants.py, by hand."""
    constants = {
        "libero": (8, 7, 8, "bounds_q99"), "calvin": (8, 7, 8, "bounds_q99"),
        "aloha": (25, 14, 14, "bounds"), "bridge": (5, 7, 7, "bounds_q99"),
    }  # fmt: skip
    for name, robot in ROBOTS.items():
        dims = len(units(robot.action)), len(units(robot.state))
        assert (robot.horizon, *dims, robot.mode) == constants[name] and robot.mode in MODES
        assert name in robot.data
    assert [*ROBOTS] == ["libero", "aloha", "bridge", "calvin"]


def test_a_file_of_ones_own_goes_before_the_table_each_word_for_itself(folder):
    made = folder()
    config = open_checkpoint(made).config
    heads = read(made / OWN)
    assert heads == {"tower_heads": [4, 4]}
    for said, words in (
        ({"views": ["eye"]}, {"views": ("eye",)}),
        ({"action_horizon": 3}, {"head": dataclasses.replace(config.head, action_horizon=3)}),
        ({"tower_heads": [2, 6]}, {"vision": dataclasses.replace(
            config.vision,
            featurizer=dataclasses.replace(config.vision.featurizer, num_heads=2),
            fused_featurizer=dataclasses.replace(config.vision.fused_featurizer, num_heads=6))}),
        ({"views": None}, {}),
    ):  # fmt: skip
        (made / OWN).write_text(json.dumps(heads | said))
        opened = open_checkpoint(made)
        assert opened.config == dataclasses.replace(config, **words)
        is_said = said.keys() & {"views", "action_horizon"} and words
        assert any(line.endswith(f"of libero, and {OWN}") for line in opened.said) == bool(is_said)


def test_a_robot_of_ones_own_is_said_whole(written, folder):
    assert [*read(written("tiny") / STATISTICS)] == ["made_up"]
    assert {*read(written("tiny") / OWN)} == {
        "normalization", "views", "action_horizon", "tower_heads"
    }  # fmt: skip
    assert any(line.endswith(f"from {OWN}") for line in open_checkpoint(written("tiny")).said)


def test_adapters_beside_merged_weights_are_left_out_and_said(folder):
    made = folder()
    (made / "lora_adapter").mkdir()
    (made / "lora_adapter" / "adapter_model.safetensors").write_bytes(b"")
    opened = open_checkpoint(made)
    assert same(opened) and opened.said[-1].startswith("note: lora_adapter is left out")
