"""Checkpoint folders: what is written is what is read, and everything that does not fit."""

import dataclasses
import json
import re
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from models import checkpoint
from models.anchorvla4d.checkpoint import UNUSED
from models.anchorvla4d.model import AnchorVLA4D
from models.anchorvla4d.presets import demo
from models.checkpoint import CheckpointError, load_checkpoint, reference, write_random_checkpoint
from models.layouts.hugging_face import published_name
from models.stored import plain
from tests.oracles import IMAGE, TOKENIZER, Observation, random_policy

SHARD = "model-00000.safetensors"
INDEX = "model.safetensors.index.json"
BOUNDS = {"min": [-1.0] * 4, "max": [1.0] * 4}
STATISTICS = {"arm": {"state": BOUNDS, "action": BOUNDS}}


def write(path, config=None, *, seed=0):
    write_random_checkpoint(
        path,
        config or demo(),
        tokenizer=TOKENIZER,
        image=IMAGE,
        statistics=STATISTICS,
        seed=seed,
    )
    return path


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    return write(tmp_path_factory.mktemp("checkpoint") / "demo")


@pytest.fixture
def folder(written, tmp_path):
    return shutil.copytree(written, tmp_path / "demo")


def edit_json(path, edit):
    raw = json.loads(path.read_text())
    edit(raw)
    path.write_text(json.dumps(raw))


def edit_tensors(folder, edit):
    """Change the shard's tensors, and the index with them."""
    tensors = load_file(folder / SHARD)
    edit(tensors)
    save_file(tensors, folder / SHARD)
    (folder / INDEX).write_text(json.dumps({"weight_map": dict.fromkeys(tensors, SHARD)}))


def assert_same_weights(model, other):
    want = other.state_dict()
    assert model.state_dict().keys() == want.keys()
    for name, tensor in model.state_dict().items():
        assert tensor.dtype == torch.float32 and torch.equal(tensor, want[name]), name


def test_what_is_written_is_what_is_read(written):
    loaded = load_checkpoint(written)
    assert loaded.config == demo()
    assert loaded.image == IMAGE
    assert loaded.statistics == STATISTICS
    assert not loaded.model.training
    assert_same_weights(loaded.model, random_policy(demo()))


def test_shards_are_read_back_as_one(written, tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "SHARD_BYTES", 1 << 20)
    sharded = write(tmp_path / "sharded")
    shards = sorted(sharded.glob("*.safetensors"))
    assert len(shards) > 3
    largest = max(t.nbytes for t in random_policy(demo()).state_dict().values())
    assert all(s.stat().st_size < largest + (1 << 20) for s in shards)
    assert_same_weights(load_checkpoint(sharded).model, load_checkpoint(written).model)


def test_one_file_without_an_index_is_read_too(folder, written):
    (folder / SHARD).rename(folder / "model.safetensors")
    (folder / INDEX).unlink()
    assert_same_weights(load_checkpoint(folder).model, load_checkpoint(written).model)


def test_bfloat16_weights_become_float32(folder, written):
    def to_bfloat16(tensors):
        tensors.update({name: tensor.bfloat16() for name, tensor in tensors.items()})

    edit_tensors(folder, to_bfloat16)
    want = plain(load_checkpoint(written).model).bfloat16().float()
    assert_same_weights(load_checkpoint(folder).model, want)


def test_the_hash_is_that_of_the_weights(written, tmp_path):
    again, other = write(tmp_path / "again"), write(tmp_path / "other", seed=1)
    assert load_checkpoint(again).sha256 == load_checkpoint(written).sha256
    assert load_checkpoint(other).sha256 != load_checkpoint(written).sha256


def test_random_tensors_keep_the_scale_of_their_input():
    model = random_policy(demo())
    weight = model.vlm.model.layers[0].mlp.down_proj.weight
    assert weight.norm().item() == pytest.approx(weight.shape[0] ** 0.5, rel=0.02)
    assert model.vlm.model.norm.weight.mean().item() == pytest.approx(1, abs=0.05)


def test_a_missing_folder_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="nowhere: no such folder"):
        load_checkpoint(tmp_path / "nowhere")


@pytest.mark.parametrize(
    "name",
    ["config.json", "preprocessor_config.json", "dataset_statistics.json", "tokenizer.json"],
)
def test_a_missing_file_is_named(folder, name):
    (folder / name).unlink()
    with pytest.raises(CheckpointError, match=f"{name}: missing"):
        load_checkpoint(folder)


def bomb(path):
    """A pickle that creates `path` when it is loaded."""
    return b"cbuiltins\nopen\n(V%s\nVw\ntR." % str(path).encode()


def test_a_pickle_is_never_opened(folder, tmp_path):
    (folder / SHARD).unlink()
    (folder / INDEX).unlink()
    trace = tmp_path / "trace"
    (folder / "pytorch_model.bin").write_bytes(bomb(trace))
    with pytest.raises(CheckpointError, match=f"neither model.safetensors nor {INDEX}"):
        load_checkpoint(folder)
    assert not trace.exists()


def test_a_pickle_that_the_index_names_is_never_opened(folder, tmp_path):
    trace = tmp_path / "trace"
    (folder / SHARD).write_bytes(bomb(trace))
    with pytest.raises(CheckpointError, match="not a whole safetensors file"):
        load_checkpoint(folder)
    assert not trace.exists()


def test_a_git_lfs_pointer_is_recognised(folder):
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:0\n"
    (folder / SHARD).write_text(pointer)
    with pytest.raises(CheckpointError, match="git-lfs pointer, not weights; run: git lfs pull"):
        load_checkpoint(folder)
    for name in (INDEX, "tokenizer.json", "dataset_statistics.json", "preprocessor_config.json"):
        (folder / name).write_text(pointer)
        with pytest.raises(
            CheckpointError, match=f"{name}: a git-lfs pointer, not .*; run: git lfs"
        ):
            load_checkpoint(folder)
    (folder / "config.json").write_text(pointer)
    with pytest.raises(
        CheckpointError, match="config.json: a git-lfs pointer, not the file itself"
    ):
        load_checkpoint(folder)


@pytest.mark.parametrize("keep", [0, 4, 1000, -1])
def test_a_truncated_shard_is_refused(folder, keep):
    data = (folder / SHARD).read_bytes()
    (folder / SHARD).write_bytes(data[:keep])
    with pytest.raises(CheckpointError, match=f"{SHARD}: not a whole safetensors file"):
        load_checkpoint(folder)


def test_a_shard_that_is_not_there_is_named(folder):
    edit_json(folder / INDEX, lambda i: i["weight_map"].update(more="model-00001.safetensors"))
    with pytest.raises(CheckpointError, match="shards that are not there: model-00001.safetensors"):
        load_checkpoint(folder)


@pytest.mark.parametrize(
    "edit",
    [
        lambda i: i["weight_map"].update({"vlm.more": SHARD}),
        lambda i: i["weight_map"].pop("vlm.model.norm.weight"),
    ],
)
def test_an_index_that_disagrees_with_its_shards_is_refused(folder, edit):
    edit_json(folder / INDEX, edit)
    message = r"index and shards disagree about vlm\.(more|model\.norm\.weight)$"
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(folder)


NAME = "action_head.final_layer.linear.bias"


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda t: t.pop(NAME), f"missing tensors: {NAME}$"),
        (lambda t: t.update(extra=torch.zeros(1)), "extra tensors: extra$"),
        (
            lambda t: t.update({NAME: torch.zeros(5)}),
            rf"tensors of another shape: {NAME} \[5\], expected \[4\]$",
        ),
        (
            lambda t: t.update({NAME: torch.full((4,), torch.nan)}),
            f"tensors with NaN or infinity: {NAME}$",
        ),
        (
            lambda t: t.update({NAME: torch.tensor([0, 0, 0, torch.inf])}),
            f"tensors with NaN or infinity: {NAME}$",
        ),
        (
            lambda t: t.update({f"extra{i}": torch.zeros(1) for i in range(10)}),
            "extra tensors: extra0, .* and 2 more$",
        ),
    ],
)
def test_tensors_that_do_not_fit_are_named(folder, edit, message):
    edit_tensors(folder, edit)
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(folder)


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        (torch.int8, "I8"),
        (torch.bool, "BOOL"),
        (torch.int64, "I64"),
        (torch.float8_e4m3fn, "F8_E4M3"),
    ],
)
def test_weights_of_a_type_that_holds_no_plain_floats_are_refused(folder, kind, name):
    edit_tensors(folder, lambda t: t.update({NAME: t[NAME].to(kind)}))
    with pytest.raises(CheckpointError, match=f"another type than F64, .*BF16: {NAME} {name}$"):
        load_checkpoint(folder)


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_of_every_float_type_are_read(folder, written, kind):
    edit_tensors(folder, lambda t: t.update({NAME: t[NAME].to(kind)}))
    want = load_checkpoint(written).model.state_dict()[NAME].to(kind).float()
    assert torch.equal(load_checkpoint(folder).model.state_dict()[NAME], want)


def newer_name(name):
    """As transformers 4.52 begins them."""
    if name.startswith("vlm.visual."):
        return name.replace("vlm.visual.", "vlm.model.visual.")
    return name.replace("vlm.model.", "vlm.model.language_model.")


def test_the_newer_names_are_those_of_transformers_itself():
    config = Qwen2_5_VLConfig(
        text_config={"num_hidden_layers": 1, "hidden_size": 64, "vocab_size": 99},
        vision_config={"depth": 1, "hidden_size": 64, "out_hidden_size": 64, "num_heads": 4},
    )
    with torch.device("meta"):
        theirs = Qwen2_5_VLForConditionalGeneration(config).state_dict()
    renamed = {published_name(f"vlm.{name}") for name in theirs} - set(UNUSED)
    with torch.device("meta"):
        ours = AnchorVLA4D(demo()).state_dict()
    assert renamed == {
        name for name in ours
        if name.startswith("vlm.") and not re.search(r"(layers|blocks)\.[1-9]", name)
    }  # fmt: skip


def test_a_checkpoint_with_the_newer_names_is_the_same_policy(folder, written):
    def rename(tensors):
        for name in list(tensors):
            tensors[newer_name(name)] = tensors.pop(name)

    edit_tensors(folder, rename)
    assert_same_weights(load_checkpoint(folder).model, load_checkpoint(written).model)


def test_a_tensor_under_both_of_its_names_is_refused(folder):
    name = "vlm.model.norm.weight"
    edit_tensors(folder, lambda t: t.update({newer_name(name): t[name] + 1}))
    message = "under both of their names: vlm.model.(language_model.)?norm.weight and vlm.model"
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(folder)


def test_the_head_that_speaks_words_is_left_out_and_that_is_told(folder, written, capsys):
    edit_tensors(folder, lambda t: t.update({"vlm.lm_head.weight": torch.zeros(3, 2)}))
    loaded = load_checkpoint(folder)
    assert capsys.readouterr().err == (
        f"{folder}: left out, as this policy does not use it: vlm.lm_head.weight\n"
    )
    assert_same_weights(loaded.model, load_checkpoint(written).model)
    assert capsys.readouterr().err == ""


def test_all_problems_are_told_at_once(folder):
    def spoil(tensors):
        tensors["extra"] = tensors.pop(NAME)

    edit_tensors(folder, spoil)
    with pytest.raises(CheckpointError, match=f"missing tensors: {NAME}; extra tensors: extra"):
        load_checkpoint(folder)


def test_weights_of_another_width_are_refused(folder):
    def widen(config):
        config["vision"]["out_hidden_size"] = config["language"]["hidden_size"] = 256
        config["language"]["mrope_section"] = [8, 12, 12]

    edit_json(folder / "config.json", widen)
    message = r"another shape: .*final_projection.weight \[128, 96\], expected \[256, 96\] and"
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(folder)


def test_a_config_that_does_not_fit_is_refused(folder):
    edit_json(folder / "config.json", lambda c: c.update(model_type="octo"))
    with pytest.raises(
        CheckpointError, match=r"config.json: model_type must be one of .*, got 'octo'"
    ):
        load_checkpoint(folder)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda c: c.update(patch_size=16), r"are \(2, 16, 2\), the vision tower .* \(2, 14, 2\)"),
        (lambda c: c.update(merge_size=3), r"are \(2, 14, 3\), the vision tower"),
        (lambda c: c.update(patch_size="14"), "preprocessor_config.json: "),
        (lambda c: c.update(image_mean=None), "preprocessor_config.json: "),
        (lambda c: c.pop("min_pixels"), "states no min_pixels and max_pixels"),
        (lambda c: c.update(min_pixels=10**9), "0 <= min_pixels <= max_pixels expected"),
    ],
)
def test_image_settings_that_do_not_fit_are_refused(folder, edit, message):
    edit_json(folder / "preprocessor_config.json", edit)
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(folder)


@pytest.mark.parametrize(
    "text",
    [
        "{}",
        "[]",
        '{"weight_map"',
        '{"weight_map": 3}',
        '{"weight_map": {"a": "../model.safetensors"}}',
    ]
    + ['{"weight_map": {"a": 3}}'],
)
def test_a_damaged_index_is_refused(folder, text):
    (folder / INDEX).write_text(text)
    with pytest.raises(CheckpointError, match="not an index of shards"):
        load_checkpoint(folder)


def test_a_token_without_a_row_is_refused(folder):
    def add(raw):
        raw["model"]["vocab"]["far"] = 9999

    edit_json(folder / "tokenizer.json", add)
    with pytest.raises(CheckpointError, match="ids below 10000 .* do not fit the 512 rows"):
        load_checkpoint(folder)


def test_both_spellings_of_the_image_limits_are_read(folder):
    def rename(settings):
        limits = settings.pop("min_pixels"), settings.pop("max_pixels")
        settings["size"] = dict(zip(("shortest_edge", "longest_edge"), limits, strict=True))

    edit_json(folder / "preprocessor_config.json", rename)
    assert load_checkpoint(folder).image == IMAGE


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda s: s.clear(), "holds no robot"),
        (lambda s: s["arm"].pop("action"), "arm lacks 'action', it has"),
        (lambda s: s["arm"]["state"].pop("max"), r"arm.state: .* hold no 'max', only \['min'\]"),
        (lambda s: s["arm"]["state"].update(max=[1]), "'max' has 1 numbers for 4 dimensions"),
        (
            lambda s: s["arm"]["action"].update(min=[1.0] * 4),
            r"arm.action\[0\]: min >= max \(1.0 >= 1.0\); this dimension never moved",
        ),
        (
            lambda s: s["arm"]["action"].update(max=[1, 1, float("nan"), 1]),
            r"arm.action\[2\]: max is nan",
        ),
    ],
)
def test_statistics_that_do_not_fit_are_refused(folder, edit, message):
    edit_json(folder / "dataset_statistics.json", edit)
    with pytest.raises(CheckpointError, match=f"dataset_statistics.json: .*{message}"):
        load_checkpoint(folder)


def test_quantiles_in_the_wrong_order_are_refused(folder):
    edit_json(folder / "config.json", lambda c: c["normalization"].update(action=["q99"] * 4))
    bounds = {"q01": [0.5] * 4, "q99": [0.25] * 4}
    edit_json(folder / "dataset_statistics.json", lambda s: s["arm"].update(action=bounds))
    with pytest.raises(CheckpointError, match=r"q01 >= q99 \(0.5 >= 0.25\)"):
        load_checkpoint(folder)


def test_degrees_where_radians_are_meant_are_refused(folder):
    edit_json(folder / "config.json", lambda c: c["normalization"].update(action_units=["rad"] * 4))
    bounds = {"min": [-90.0] * 4, "max": [90.0] * 4}
    edit_json(folder / "dataset_statistics.json", lambda s: s["arm"].update(action=bounds))
    with pytest.raises(CheckpointError, match="in rad but spans 180.*are the statistics in degree"):
        load_checkpoint(folder)


@pytest.mark.parametrize(
    ("robot", "message"),
    [
        (None, r"hold 2 embodiments, choose one of \['arm', 'leg'\]"),
        ("hand", r"no statistics for embodiment 'hand'; there are \['arm', 'leg'\]"),
    ],
)
def test_the_reference_does_not_guess_the_robot(folder, robot, message):
    edit_json(folder / "dataset_statistics.json", lambda s: s.update(leg=s["arm"]))
    loaded = load_checkpoint(folder)
    seen = dataclasses.asdict(Observation.random(demo(), (112, 112), "push", seed=0))
    with pytest.raises(ValueError, match=message):
        reference(loaded, **seen, embodiment=robot)
    assert np.isfinite(reference(loaded, **seen, embodiment="leg")).all()


def test_a_file_that_is_no_tokenizer_is_refused(folder):
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(CheckpointError, match="tokenizer.json: not a tokenizer"):
        load_checkpoint(folder)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (
            lambda c: c["language"].update(vocab_size=300),
            "and 511 of the prompt do not fit the 300 rows",
        ),
        (
            lambda c: c["prompt"].update(placeholder_token_id=512),
            "and 512 of the prompt do not fit the 512 rows",
        ),
        (
            lambda c: c["prompt"].update(image_start="<|nothing|>"),
            r"has no token '<\|nothing\|>', which the prompt needs",
        ),
    ],
)
def test_a_tokenizer_that_does_not_fit_is_refused(folder, edit, message):
    edit_json(folder / "config.json", edit)
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(folder)
