"""What cannot be read of others' checkpoints is refused in one line, and nothing of it is run."""

import argparse
import collections
import io
import json
import re
import shutil

import numpy as np
import pytest
import torch

from models.checkpoint import CheckpointError, load_checkpoint, open_checkpoint
from models.layouts import stored
from models.layouts.stored import Foreign, stored_torch
from models.sources import Stored
from tests.models.synthesized import POINTER, RANK, command, edit_json, edit_rank

QKV = "text_decoder.decoder.layers.0.self_attention.linear_qkv.weight"


def refused(folder, message):
    """The error of opening a folder: one line that matches."""
    with pytest.raises(CheckpointError, match=message) as caught:
        open_checkpoint(folder)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("keep", [0, 100, 100_000, -1])
def test_a_truncated_shard_is_refused(copy, keep):
    folder = copy("shards")
    data = (folder / RANK.format(1)).read_bytes()
    (folder / RANK.format(1)).write_bytes(data[:keep])
    refused(folder, r"mp_rank_01/model_optim_rng.pt: not a whole torch file .*; copy it again")
    folder = copy("published")
    data = (folder / "action_head.pt").read_bytes()
    (folder / "action_head.pt").write_bytes(data[:keep])
    refused(folder, r"action_head.pt: not a whole torch file .*; copy it again")


@pytest.mark.parametrize(
    ("name", "file"),
    [("shards", RANK.format(1)), ("published", "info_sharing.pt"), ("published", "policy.json"),
     ("published", "config.json")],
)  # fmt: skip
def test_a_git_lfs_pointer_is_recognised(copy, name, file):
    folder = copy(name)
    (folder / file).write_text(POINTER)
    refused(folder, rf"{file}: a git-lfs pointer, not .*; run: git lfs pull")


def test_a_missing_tensor_parallel_shard_is_named(copy):
    folder = copy("shards")
    parent = (folder / RANK.format(0)).parents[1]
    (parent / "mp_rank_00").rename(parent / "mp_rank_02")
    refused(folder, "missing tensor-parallel shards: mp_rank_00, while mp_rank_02 is there; copy")
    (parent / "mp_rank_02").rename(parent / "mp_rank_00")
    shutil.move(parent / "mp_rank_01", folder / "elsewhere")
    refused(
        folder,
        "iter_0000001: 1 tensor-parallel shards, of which mp_rank_00 holds 256 of the 512 rows of "
        "vlm.text_decoder.embedding.word_embeddings.weight: expected 2 shards, mp_rank_00 to "
        "mp_rank_01; copy all of one training, and no others",
    )
    (parent / "mp_rank_01").mkdir()
    refused(folder, "mp_rank_01/model_optim_rng.pt not there; copy it too")


@pytest.mark.parametrize(("name", "rank"), [("authors", ""), ("shards", " of mp_rank_00")])
def test_a_fused_qkv_of_other_heads_is_told_in_heads(copy, name, rank):
    folder = copy(name)
    edit_json(folder / "policy.json", lambda p: p["language"].update(num_key_value_heads=4))
    got, want = (256, 384) if name == "authors" else (128, 192)
    refused(
        folder,
        rf"tensors of another shape: vlm.{QKV}{rank} \[{got}, 128\], expected \[{want}, 128\] "
        r"\(4 query and 4 key/value heads of 32 rows make 12 fused heads, these are 8; 2 key/value "
        r"heads would fit\), .*linear_qkv.bias",
    )
    edit_json(folder / "policy.json", lambda p: p["language"].update(num_key_value_heads=1))
    words = "1 key/value heads cannot be cut into 2" if rank else "2 key/value heads would fit"
    refused(folder, words)


@pytest.mark.parametrize("name", ["published", "authors"])
@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda e: e.pop("state"), r"synthetic lacks 'state' \(or proprio\), it has \['action'\]"),
        (lambda e: e["action"].pop("min"), "synthetic.action.*min"),
    ],
)
def test_statistics_without_the_key_are_refused(copy, name, edit, message):
    folder = copy(name)
    file = folder / "dataset_statistics.json"
    robot = next(iter(json.loads(file.read_text())))
    edit_json(file, lambda s: edit(s[robot]))
    refused(folder, "dataset_statistics.json: " + message.replace("synthetic", robot))
    (folder / "dataset_statistics.json").unlink()
    refused(folder, "dataset_statistics.json: missing")


def test_tensors_that_are_missing_or_unknown_are_named_with_their_shard(copy):
    folder = copy("shards")

    def spoil(content):
        vlm = content["model"]["vlm"]
        vlm["image_cross_attn.0.weight"] = vlm.pop(QKV)

    edit_rank(folder, spoil, rank=1)
    refused(
        folder,
        f"missing tensors: vlm.{QKV} of mp_rank_01; "
        "extra tensors: vlm.image_cross_attn.0.weight of mp_rank_01$",
    )
    folder = copy("authors")
    edit_rank(folder, lambda c: c["model"].update(vit_memory={"fc1.weight": torch.zeros(2)}))
    refused(folder, "extra tensors: vit_memory.fc1.weight$")
    edit_rank(folder, lambda c: c["model"].pop("info_sharing"))
    refused(folder, "missing tensors: info_sharing.final_projection.bias, .* and .* more; extra")


def test_parts_of_a_hugging_face_folder_that_lack_are_named(copy):
    folder = copy("published")
    (folder / "action_head.pt").unlink()
    refused(folder, r"missing tensors: action_head.blocks.0.adaLN_modulation.1.bias, .* more$")
    folder = copy("newer")
    torch.save({"attn.weight": torch.zeros(2)}, folder / "vit_memory.pt")
    torch.save({}, folder / "cross_state.pt")
    refused(folder, "extra tensors: attn.weight$")
    torch.save([1], folder / "vit_memory.pt")
    refused(folder, "vit_memory.pt: its content is no tensor but a list; it must be a dictionary")


def test_shards_that_differ_where_they_must_not_are_refused_when_read(copy, tmp_path, capsys):
    folder = copy("shards")

    def spoil(content):
        content["model"]["action_head"]["final_layer.linear.bias"][0] += 1

    edit_rank(folder, spoil, rank=1)
    message = (
        "action_head.final_layer.linear.bias differs between mp_rank_00 and mp_rank_01; take the "
        "shards of one iteration"
    )
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(folder)
    assert command("import", folder, "--out", tmp_path / "out") == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("name", "broken"), [("authors", torch.nan), ("shards", torch.inf)])
def test_numbers_that_are_none_are_named(copy, tmp_path, capsys, name, broken):
    folder = copy(name)

    def spoil(content):
        content["model"]["vlm"][QKV][-1, 3] = broken  # the last row: of a value head

    edit_rank(folder, spoil)
    with pytest.raises(CheckpointError, match=rf"tensors with NaN or infinity: vlm.{QKV}"):
        load_checkpoint(folder)
    assert command("import", folder, "--out", tmp_path / "out") == 2
    name = "vlm.model.layers.0.self_attn.v_proj.weight"
    assert f"{name} holds NaN or infinity; copy vlm.{QKV} of " in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", [torch.int8, torch.float64])
def test_shards_of_other_types_are_refused(copy, kind):
    folder = copy("shards")

    def spoil(content):
        content["model"]["vlm"][QKV] = content["model"]["vlm"][QKV].to(kind)

    edit_rank(folder, spoil, rank=1)
    name = str(kind).removeprefix("torch.")
    names = " and ".join(sorted(["bfloat16", name]))
    refused(folder, rf"another type than F64, F32, F16, BF16: vlm.{QKV} .*{names}$")


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (
            lambda f, p: (f / "latest_checkpointed_iteration.txt").write_text("7"),
            r"names iter_0000007, which is not there, only \['iter_0000001'\]; copy it",
        ),
        (
            lambda f, p: (f / "latest_checkpointed_iteration.txt").write_text("soon"),
            "iteration.txt: holds 'soon', expected a number or 'release'",
        ),
        (
            lambda f, p: (p / "mp_rank_00").rename(p / "mp_rank_00_000"),
            "mp_rank_00_000: pipeline- or expert-parallel shards are not read; put them together",
        ),
        (lambda f, p: shutil.rmtree(p / "mp_rank_00"), "neither mp_rank_00/model_optim_rng.pt nor"),
        (
            lambda f, p: ((p / "mp_rank_00").rename(f / "x"), (p / "__0_0.distcp").touch()),
            r"a distributed checkpoint: train or save with --ckpt-format torch\)",
        ),
        (
            lambda f, p: (f / "model.safetensors").write_bytes(b""),
            "holds both safetensors and shards of Megatron; leave one of the two",
        ),
        (
            lambda f, p: edit_rank(f, lambda c: c.update(model0=c.pop("model"))),
            r"holds no 'model' with vlm, action_head, info_sharing, but .*model0.* are not read",
        ),
        (
            lambda f, p: edit_rank(f, lambda c: c["model"]["vlm"].update(step=3)),
            "vlm.step is no tensor but a int; expected the tensors of vlm",
        ),
    ],
)
def test_folders_of_another_kind_are_refused_with_what_to_do(copy, edit, message):
    folder = copy("authors")
    edit(folder, folder / "iter_0000001")
    refused(folder, message)


@pytest.mark.parametrize(
    ("name", "edit", "message"),
    [
        ("published", lambda c: c.update(rope_theta=1e4), "language.rope_theta is 10000.0 there"),
        (
            "published", lambda c: c["rope_scaling"].update(mrope_section=[6, 4, 6]),
            r"language.mrope_section is \[6, 4, 6\] there and \[4, 6, 6\] here",
        ),
        (
            "newer", lambda c: c["text_config"]["rope_parameters"].update(rope_theta=5),
            "language.rope_theta is 5 there and 10.0 here",
        ),
        (
            "newer", lambda c: c["text_config"]["rope_parameters"].update(mrope_section=[8, 4, 4]),
            r"language.mrope_section is \[8, 4, 4\] there",
        ),
        (
            "newer", lambda c: c["text_config"]["rope_parameters"].update(rope_type="yarn"),
            "rotary positions of type 'yarn' are not honoured, only 'mrope'",
        ),
        (
            "published", lambda c: c["rope_scaling"].update(type="linear"),
            "rotary positions of type 'linear' are not honoured",
        ),
        ("published", lambda c: c.update(hidden_act="gelu"), "hidden_act='gelu' is not honoured"),
        (
            "newer", lambda c: c["vision_config"].update(num_heads=8, depth=3),
            "vision.depth is 3 there and 2 here, vision.num_heads is 8 there and 4 here",
        ),
        ("published", lambda c: c.update(model_type="qwen2_vl"), "model_type is 'qwen2_vl', exp"),
    ],
)  # fmt: skip
def test_a_config_that_contradicts_the_policys_is_refused(copy, name, edit, message):
    folder = copy(name)
    edit_json(folder / "config.json", edit)
    assert refused(folder, message).startswith(str(folder / "config.json"))


def test_a_folder_without_the_policys_sizes_says_which_file_to_write(copy):
    folder = copy("published")
    (folder / "policy.json").unlink()
    refused(folder, "config full --out policy.json")


class Ran(Exception):
    """That a file's own code was run."""


def run(*arguments):
    raise Ran


class Attack:
    """Would be run by a pickle that is trusted."""

    def __reduce__(self):
        return run, (1,)


class Options:
    """As Megatron keeps in its arguments: an object of a class that is not here."""

    def __init__(self):
        self.backend = collections.Counter(a=1)


def test_what_megatron_pickles_beside_the_model_is_not_run(copy, drawn):
    folder = copy("authors")

    def add(content):
        content["args"] = argparse.Namespace(options=Options(), type=torch.bfloat16)
        content["rng_state"] = [{"np_rng_state": np.random.get_state(), "seed": Attack()}]
        content["model"]["vlm"]["text_decoder.x._extra_state"] = io.BytesIO(b"fp8")

    edit_rank(folder, add)
    weights = open_checkpoint(folder).weights
    assert all(torch.equal(weights[name].read(), tensor) for name, tensor in drawn.items())
    assert {u.name for u in weights.unused} == {
        "args", "checkpoint_version", "iteration", "rng_state", "vlm.text_decoder.x._extra_state",
        "vlm.text_decoder.output_layer._extra_state",
    }  # fmt: skip
    kept = dict(stored_torch(folder / RANK.format(0)))
    assert type(kept[("args",)]) is Foreign and vars(kept[("args",)]) == {}


def test_a_module_that_torch_blocks_is_refused_unread(copy):
    import os

    folder = copy("authors")

    class Shell:
        def __reduce__(self):
            return os.getcwd, ()

    edit_rank(folder, lambda c: c.update(args=Shell()))
    refused(folder, r"read without running its code \(.*posix.*\); copy it again, or save its")


def test_a_tensor_from_the_authors_accelerator_is_read(tmp_path, monkeypatch):
    """torch for Ascend pickled its own rebuilding function, with a layout as a seventh argument."""
    value = torch.arange(24.0).reshape(4, 6)

    class OnAscend:
        def __reduce__(self):
            v = value
            storage = v._typed_storage()
            return rebuild, (storage, 0, tuple(v.shape), v.stride(), False, {}, 2)

    def rebuild(*arguments):
        raise Ran

    rebuild.__module__, rebuild.__qualname__ = "torch_npu.utils.storage", "_rebuild_npu_tensor"
    import sys
    import types

    module = types.ModuleType("torch_npu.utils.storage")
    module._rebuild_npu_tensor = rebuild
    for name in ("torch_npu", "torch_npu.utils", "torch_npu.utils.storage"):
        monkeypatch.setitem(sys.modules, name, module)
    torch.save({"x": OnAscend(), "turned": value.T, "part": value[1:, 2:4]}, tmp_path / "a.pt")
    read = {place[0]: item for place, item in stored_torch(tmp_path / "a.pt")}
    assert all(isinstance(item, Stored) for item in read.values())
    assert torch.equal(read["x"].read(), value)
    assert torch.equal(read["turned"].read(), value.T) and read["turned"].read().is_contiguous()
    assert torch.equal(read["part"].read(), value[1:, 2:4])


def test_numbers_at_an_odd_place_are_read(tmp_path):
    (tmp_path / "a").write_bytes(b"x" + np.arange(6, dtype=np.float32).tobytes())
    got = stored._mapped(tmp_path / "a", 1, torch.float32, (2, 3))
    assert torch.equal(got, torch.arange(6.0).reshape(2, 3))
    assert got.data_ptr() % got.itemsize == 0
    assert stored._mapped(tmp_path / "a", 1, torch.float32, (0, 3)).shape == (0, 3)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--layout", "hf", "--shards", "2"], "--shards belongs to --layout authors"),
        (["--layout", "authors", "--names", "newer"], "--names belongs to --layout hf"),
        (["--layout", "authors", "--shards", "0"], "--shards must be at least 1"),
        (["--layout", "authors", "--shards", "3"], "2 key/value heads cannot be cut into 3"),
    ],
)
def test_a_folder_that_cannot_be_made_is_refused_before_anything_is_written(
    tmp_path, capsys, words, message
):
    assert command("synthesize", "--config", "demo", *words, "--out", tmp_path / "out") == 2
    assert message in re.sub(r"[\s|\u2502]+", " ", capsys.readouterr().err)
    assert not list(tmp_path.iterdir())


def test_a_folder_of_its_own_is_replaced_and_any_other_stays(folders, tmp_path, capsys):
    out = tmp_path / "out"
    line = ["synthesize", "--config", "demo", "--layout", "authors", "--out", out]
    for _ in range(2):
        assert command(*line) == 0
    assert command("import", folders["newer"], "--out", out) == 8
    assert "it holds no checkpoint that this command imported" in capsys.readouterr().err
    (out / "iter_0000001" / "notes.txt").write_text("mine")
    assert command(*line) == 8
    assert "iter_0000001/notes.txt is not of this command" in capsys.readouterr().err
    for _ in range(2):
        assert command("import", folders["newer"], "--out", tmp_path / "in") == 0
    (tmp_path / "in" / "notes.txt").write_text("mine")
    assert command("import", folders["newer"], "--out", tmp_path / "in") == 8
    assert "notes.txt is not of this command" in capsys.readouterr().err
