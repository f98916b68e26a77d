"""Run folders of starVLA that are damaged, foreign or hostile: refused, in words that help."""

import json
import os
import re
import shutil

import numpy as np
import pytest
import torch

from models.checkpoint import open_checkpoint
from models.errors import CheckpointError
from models.layouts.starvla import OTHERS, SERVED
from models.layouts.starvla_config import MAX_BYTES, read_settings
from tests.models import starvla_runs
from tests.models.starvla_runs import (
    PT,
    edit_weights,
    edit_yaml,
    numbers,
    settings,
    synthesized,
    write_statistics,
)
from tests.models.synthesized import POINTER, command, edit_json


@pytest.fixture(autouse=True)
def family(monkeypatch):
    starvla_runs.register(monkeypatch)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    base, kept = tmp_path_factory.mktemp("runs"), {}

    def run(name):
        if name not in kept:
            kept[name] = synthesized(base / name, name)
        return kept[name]

    return run


@pytest.fixture
def run(made, tmp_path):
    return lambda name="bridge-like": shutil.copytree(made(name), tmp_path / "run")


def refused(folder, words):
    with pytest.raises(CheckpointError, match=words) as error:
        open_checkpoint(folder)
    assert str(folder) in str(error.value)


FRAMEWORK, VLM = ("framework",), ("framework", "qwenvl")
HEAD = ("framework", "action_model")
DIT = (*HEAD, "diffusion_model_cfg")
DATA = ("datasets", "vla_data")
SETTINGS = [
    (FRAMEWORK, {"name": "QwenOFTplus"}, "'QwenOFTplus', which starVLA does not know; it must be"),
    (FRAMEWORK, {"name": None}, "framework.name must be a text, got None"),
    (FRAMEWORK, {"action_model": []}, r"framework.action_model must hold settings .*, got \[\]"),
    (FRAMEWORK, {"qwenvl": None}, "framework.qwenvl must hold settings by name, got None"),
    (VLM, {"base_vlm": 3}, "framework.qwenvl.base_vlm must be a text, got 3"),
    (VLM, {"base_vlm": "x/Qwen3-VL-4B-Instruct"}, "hold no vlm.visual.merger.linear_fc2.weight"),
    (VLM, {"base_vlm": "Qwen/Qwen3.5-4B"}, "is a Qwen3.5: its networks are not here; a run on"),
    (VLM, {"base_vlm": "google/gemma-4-E2B-it"}, "is a Gemma 4: its networks"),
    (VLM, {"base_vlm": "llava"}, "names no model that starVLA knows; a Qwen2.5-VL or"),
    (VLM, {"base_vlm": "Qwen2.5-VL-72B"}, "none of Qwen2.5-VL-3B-Instruct, .*copy its config.json"),
    (HEAD, {"action_horizon": None}, "action_horizon is missing"),
    (HEAD, {"action_horizon": "6"}, "action_horizon must be a whole number, got '6'"),
    (HEAD, {"action_horizon": True}, "action_horizon must be a whole number, got True"),
    (HEAD, {"action_horizon": 31}, "action_horizon=31 must be at most max_seq_len=30"),
    (HEAD, {"past_action_window_size": 1}, "past_action_window_size=1 is not honoured, only 0"),
    (HEAD, {"action_dim": 6}, "action_model.action_dim=6, and the weights say 7"),
    (HEAD, {"state_dim": 8}, "action_model.state_dim=8, and the weights say 7"),
    (HEAD, {"hidden_size": 41}, "action_model.hidden_size=41, and the weights say 40"),
    (HEAD, {"num_target_vision_tokens": 32}, "vision_tokens=32, and the weights say 3"),
    (HEAD, {"max_seq_len": 31}, "max_seq_len=31, and the weights say 30"),
    (HEAD, {"num_inference_timesteps": 501}, "must be from 1 to 500, got 501"),
    (HEAD, {"diffusion_model_cfg": 1}, "diffusion_model_cfg must hold settings by name, got 1"),
    (DIT, {"num_layers": 16}, "diffusion_model_cfg.num_layers=16, and the weights say 4"),
    (DIT, {"output_dim": 20}, "diffusion_model_cfg.output_dim=20, and the weights say 40"),
    (DIT, {"num_attention_heads": 4}, "4 heads of 8, the weights a width of 24"),
    (DIT, {"norm_type": "layer_norm"}, "norm_type='layer_norm' is not honoured, only 'ada_norm'"),
    (DIT, {"positional_embeddings": "sinusoidal"}, "positional_embeddings='sinusoidal' is not hon"),
    (DIT, {"interleave_self_attention": "no"}, "interleave_self_attention='no' is no bool"),
    (DATA, {"data_mix": "mine"}, "'mine' is none of those .*bridge, bridge_rt_1, .*policy.json"),
    (DATA, {"data_mix": "robotwin_all_50"}, "its grippers are opened above 0.49"),
    (DATA, {"data_mix": "robotwin"}, "the head has 7 dimensions of action, data_mix 'robotwin' 14"),
    (DATA, {"data_mix": None}, "datasets.vla_data.data_mix must be a text, got None"),
    (DATA, {"action_mode": "delta"}, "action_mode='delta' makes other actions"),
    (DATA, {"include_state": "yes"}, "include_state must be true or false, got 'yes'"),
    (DATA, {"include_state": True}, "has 7 dimensions of state, data_mix 'bridge' 8"),
    (DATA, {"include_state": True, "data_mix": "bridge_rt_1"}, "states of different units; say it"),
    (DATA, {"CoT_prompt": "Grasp it."}, "prompt.text must hold {instruction} once"),
    (DATA, {"CoT_prompt": None}, "vla_data.CoT_prompt must be a text, got None"),
    (DATA, {"obs_image_size": 224}, "obs_image_size must hold 2 whole numbers, got 224"),
    (DATA, {"obs_image_size": [224, 0]}, r"must hold 2 whole numbers, got \[224, 0\]"),
    (("datasets",), {"vla_data": None}, "datasets.vla_data must hold settings by name, got None"),
]  # fmt: skip


@pytest.mark.parametrize(("path", "change", "words"), SETTINGS, ids=lambda v: str(v)[:40])
def test_settings_that_are_not_served_are_refused_with_what_to_do(run, path, change, words):
    folder = run()
    edit_yaml(folder, lambda raw: settings(raw, *path).update(change))
    refused(folder, words)


@pytest.mark.parametrize("name", OTHERS)
def test_every_other_framework_is_refused_by_its_name(run, name):
    folder = run()
    edit_yaml(folder, lambda raw: settings(raw, "framework").update(name=name))
    words = rf"framework.name is {name} \({re.escape(OTHERS[name])}\), which is not here"
    refused(folder, words)
    assert not OTHERS.keys() & SERVED.keys()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("framework: [", r"not YAML of plain values in line 1"),
        (
            "a: 1\nb: !!python/object/apply:os.system ['true']",
            "plain values in line 2 .*python/obj",
        ),
        ("a: !!python/name:os.system", "could not determine a constructor"),
        ("a: !mine 1", "could not determine a constructor for the tag '!mine'"),
        ("a: &x [1]\nb: *x", "an alias in line 2; write out what it stands for"),
        ("a: &x {b: 1}\nc:\n  <<: *x", "an alias in line 3"),
        ("a: 1\nb: {c: [1, 2], d: 3}\na: 2", "'a' a second time in line 3"),
        ("a: {b: 1, c: 2, b: 3}", "'b' a second time in line 1"),
        ("a: " + 40 * "[" + 40 * "]", "nested deeper than 32 in line 1"),
        ("- 1", "must hold settings by name, got list"),
        ("", "must hold settings by name, got NoneType"),
        ("a: 1\n---\nb: 2", "not YAML of plain values in line 2"),
        (POINTER, "a git-lfs pointer, not the file itself"),
        ("a: " + MAX_BYTES * "x", "settings have at most 1048576"),
    ],
)
def test_yaml_that_is_not_plain_is_refused(tmp_path, text, words):
    path = tmp_path / "config.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=words) as error:
        read_settings(path)
    assert str(error.value).startswith(str(path))


def test_yaml_of_many_aliases_is_refused_before_it_grows(tmp_path):
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join(10 * [f'*a{n - 1}'])}]" for n in range(1, 30)]
    (tmp_path / "config.yaml").write_text("\n".join(lines))
    with pytest.raises(ValueError, match="an alias in line 2"):
        read_settings(tmp_path / "config.yaml")
    (tmp_path / "config.yaml").write_bytes(b"a: \xff")
    with pytest.raises(ValueError, match="not YAML of plain values"):
        read_settings(tmp_path / "config.yaml")


def test_keys_and_values_of_plain_yaml_are_told_apart(tmp_path):
    """The same word in several places is no key that comes twice."""
    path = tmp_path / "config.yaml"
    path.write_text("a: a\nb: [a, a, b, {a: 1}, {a: 2}]\nc: {a: {a: a}, b: b}\n? [d]\n: e\n")
    with pytest.raises(ValueError, match="not YAML of plain values"):  # a key that is a list
        read_settings(path)
    path.write_text("a: a\nb: [a, a, b, {a: 1}, {a: 2}]\nc: {a: {a: a}, b: b}\n")
    assert read_settings(path) == {
        "a": "a", "b": ["a", "a", "b", {"a": 1}, {"a": 2}], "c": {"a": {"a": "a"}, "b": "b"},
    }  # fmt: skip


class Attack:
    """What a pickle that is trusted would run."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("place", ["beside", "instead", "inside"])
def test_a_malicious_pickle_is_refused_and_not_run(run, tmp_path, place):
    folder, ran = run(), tmp_path / "ran"
    state = torch.load(folder / PT, weights_only=True)
    attack = Attack(ran)
    content = {"beside": state | {"x": attack}, "instead": attack, "inside": {"a": [attack]}}
    torch.save(content[place], folder / PT)
    refused(folder, "must be one dictionary of tensors|without running its code")
    assert not ran.exists()
    assert command("import", folder, "--out", tmp_path / "out") == 2
    assert not ran.exists() and not (tmp_path / "out").exists()


def renamed(begin, instead):
    def edit(state):
        for name in [name for name in state if name.startswith(begin)]:
            state[instead + name.removeprefix(begin)] = state.pop(name)

    return edit


LAYER = "qwen_vl_interface.model.model.layers.0."
QUERY = LAYER + "self_attn.q_proj.weight"
CROSS = "action_model.model.transformer_blocks.1.attn1.to_k.weight"
WEIGHTS = {
    "module.": (renamed("", "module."), "names wrapped by torch's DistributedDataParallel"),
    "compiled": (renamed("", "_orig_mod."), "names wrapped by torch.compile"),
    "peft": (renamed("", "base_model.model."), "by peft, as LoRA: merge the adapters"),
    "LoRA": (
        lambda s: s.update({LAYER + "self_attn.q_proj.lora_A.default.weight": torch.zeros(2, 2)}),
        "lora_A.default.weight: names wrapped by peft",
    ),
    "a tensor more": (lambda s: s.update(x=torch.zeros(2)), "extra tensors: x"),
    "a tensor less": (lambda s: s.pop(QUERY), "missing tensors: vlm.model.layers.0.self_attn.q_p"),
    "both names": (
        lambda s: s.update(
            {QUERY.replace("model.model.", "model.model.language_model."): s[QUERY]}
        ),
        "tensors under both of their names",
    ),
    "no head": (
        lambda s: [s.pop(n) for n in [*s] if n.startswith("action_model.")],
        r"the weights hold layers \[\] of action_head.model.transformer_blocks.N",
    ),
    "no block 2": (
        lambda s: [s.pop(n) for n in [*s] if "transformer_blocks.2." in n],
        r"hold layers \[0, 1, 3\] of action_head.model.transformer_blocks.N, none may be missing",
    ),
    "no state encoder": (
        lambda s: [s.pop(n) for n in [*s] if "state_encoder" in n],
        "action_model.state_dim=7, and the weights say 0",
    ),
    "no tokens": (
        lambda s: s.pop("qwen_vl_interface.model.model.embed_tokens.weight"),
        "the weights hold no vlm.model.embed_tokens.weight of 2 axes: missing",
    ),
    "another width": (
        lambda s: s.update({QUERY: torch.zeros(128, 64)}), "of another shape: .*q_proj",
    ),
    "other columns": (
        lambda s: s.update({CROSS: torch.zeros(24, 96)}),
        "1.attn1.to_k reads 96 columns, neither the 24 .* nor the 128",
    ),
    "whole numbers": (
        lambda s: s.update({QUERY: s[QUERY].to(torch.int8)}), "of another type than .*int8",
    ),
    "nested": (lambda s: s.update(model={"x": s[QUERY]}), "model.x is nested; it must be one dic"),
    "a number": (lambda s: s.update(step=3), "step is int; it must be one dictionary of tensors"),
}  # fmt: skip


@pytest.mark.parametrize("what", WEIGHTS)
def test_weights_that_do_not_fit_are_refused_with_their_names(run, what):
    folder, (edit, words) = run(), WEIGHTS[what]
    edit_weights(folder, edit)
    refused(folder, words)


def test_files_that_are_missing_or_damaged_are_named(run):
    folder = run()
    for name, words in (
        (PT, "holds no weights; checkpoints/steps_N_pytorch_model.pt"),
        ("dataset_statistics.json", "dataset_statistics.json: missing"),
        ("preprocessor_config.json", "preprocessor_config.json: missing.* Copy"),
    ):
        kept = (folder / name).read_bytes()
        (folder / name).unlink()
        refused(folder, words)
        (folder / name).write_text(POINTER)
        refused(folder, "git-lfs pointer")
        (folder / name).write_bytes(kept[:100])
        refused(folder, "not a whole torch file|not JSON")
        (folder / name).write_bytes(kept)
    with pytest.raises(CheckpointError, match="steps_7_pytorch_model.pt: no such folder"):
        open_checkpoint(folder / "checkpoints" / "steps_7_pytorch_model.pt")
    shutil.copyfile(folder / PT, folder / "checkpoints" / "steps_1000_model.safetensors")
    refused(folder, r"steps_1000_model.safetensors and .* are of the same step; name the file")


BASE = "Qwen2.5-VL-synthesized/config.json"


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (lambda raw: raw.pop("rms_norm_eps"), "rms_norm_eps must be stated, got None"),
        (lambda raw: raw["vision_config"].pop("num_heads"), "num_heads must be stated, got None"),
        (
            lambda raw: raw["vision_config"].update(fullatt_block_indexes=["1"]),
            "fullatt_block_indexes must be stated",
        ),
        (lambda raw: raw["vision_config"].update(depth=3), "agree with the weights: vision.depth"),
        (lambda raw: raw.update(vocab_size=9), "language.vocab_size is 9 there and 512 here"),
        (lambda raw: raw.update(num_attention_heads=5), "num_attention_heads=5 must divide"),
        (lambda raw: raw.update(hidden_act="gelu"), "hidden_act='gelu' is not honoured"),
        (
            lambda raw: raw.update(rope_scaling={"type": "yarn", "mrope_section": [4, 6, 6]}),
            "rotary positions of type 'yarn' are not honoured",
        ),
        (lambda raw: raw.update(model_type="qwen3_vl"), "none of Qwen2.5-VL-3B-Instruct"),
    ],
)
def test_a_base_model_that_does_not_fit_is_refused(run, edit, words):
    folder = run()
    edit_json(folder / BASE, edit)
    refused(folder, words)


def test_deep_stack_mergers_that_the_settings_leave_out_are_refused(run):
    folder = run("qwen3")
    edit_json(
        folder / "Qwen3-VL-synthesized/config.json",
        lambda raw: raw["vision_config"].update(deepstack_visual_indexes=[0]),
    )
    refused(folder, r"hold 2 mergers of deep-stack features, deepstack_visual_indexes=\[0\]")


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (lambda raw: raw["framework"]["action_model"].update(action_model_type="DiT-B"), "MLP"),
        (
            lambda raw: raw["datasets"]["vla_data"].update(include_state=True),
            "include_state: a state is written into the prompt as words",
        ),
    ],
)
def test_what_the_other_framework_does_not_serve_is_refused(run, edit, words):
    folder = run("token-actions")
    edit_yaml(folder, edit)
    refused(folder, words)


def test_a_state_as_words_is_refused_wherever_it_is_said(run):
    folder = run("token-actions")
    (folder / "policy.json").write_text(json.dumps({"takes_state": True}))
    refused(folder, "include_state: a state is written into the prompt as words")


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ({"action": numbers(6)}, "'q01' has 6 numbers for 7 dimensions"),
        ({"state": numbers(7)}, "lacks 'action'"),
        ({"action": numbers(7) | {"mask": [True] * 7}}, r"\[6\]: the mask says true and the mode"),
        (
            {"action": numbers(7) | {"mask": [True] * 5 + [False] * 2}},
            r"\[5\]: the mask says false",
        ),
        ({"action": numbers(7) | {"mask": [True]}}, "mask must hold 7 of true or false"),
        ({"action": numbers(7) | {"mask": "all"}}, "mask must hold 7 of true or false"),
    ],
)
def test_statistics_that_do_not_fit_are_refused(run, entry, words):
    folder = run()
    write_statistics(folder, bridge=entry)
    refused(folder, words)


def test_a_state_that_is_taken_has_to_have_statistics(run):
    folder = run("two-arms")
    write_statistics(folder, arms={"action": numbers(14)})
    refused(folder, "lacks 'state'")


@pytest.mark.parametrize(
    ("own", "words"),
    [
        ({"head": {}}, r"unknown fields \['head'\]; .* may hold normalization, views and takes_st"),
        ({"views": "eye"}, "views must be a list of names, got 'eye'"),
        ({"views": [1]}, r"views must be a list of names, got \[1\]"),
        (
            {"views": ["a", "a"]},
            r"views must name at least one camera, each once, got \('a', 'a'\)",
        ),
        ({"takes_state": 1}, "takes_state must be true or false, got 1"),
        ({"normalization": {"action": []}}, "missing fields .*normalization.action_units"),
        ([], "must be an object, got list"),
    ],
)
def test_a_file_beside_that_says_something_else_is_refused(run, own, words):
    folder = run()
    (folder / "policy.json").write_text(json.dumps(own))
    refused(folder, words)


def test_actions_of_another_kind_need_a_file_beside(run):
    folder = run()
    edit_yaml(folder, lambda raw: settings(raw, *DATA).update(action_mode="rel"))
    refused(folder, "action_mode='rel' makes other actions")
    own = {
        "normalization": {
            "action": ["q99_clipped"] * 7, "action_units": ["m"] * 7,
            "state": [], "state_units": [],
        }
    }  # fmt: skip
    (folder / "policy.json").write_text(json.dumps(own))
    write_statistics(folder, arm={"action": numbers(7)})
    assert open_checkpoint(folder).config.normalization.action == ("q99_clipped",) * 7


def test_a_folder_of_our_own_is_no_run_whatever_lies_beside(run, tmp_path):
    folder, own = run(), tmp_path / "own"
    assert command("import", folder, "--out", own) == 0
    want = open_checkpoint(own).config
    shutil.copyfile(folder / "config.yaml", own / "config.yaml")
    assert open_checkpoint(own).config == want and open_checkpoint(own).said == ()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--layout", "hf"], "a qwengr00t is written as --layout starvla only"),
        (["--layout", "authors"], "a qwengr00t is written as --layout starvla only"),
        (["--config", "demo"], "qwengr00t has no 'demo'; it has"),
        (["--family", "mine"], "unknown family 'mine'; there are"),
        (["--layout", "hf", "--weights", "safetensors"], "--weights and --settings belong to --l"),
        (["--layout", "hf", "--settings", "older"], "--weights and --settings belong to --layout"),
        (["--shards", "2"], "--shards belongs to --layout authors"),
    ],
)
def test_a_run_that_cannot_be_made_is_refused_before_anything_is_written(
    tmp_path, capsys, words, message
):
    line = {"--family": "qwengr00t", "--config": "bridge-like", "--out": tmp_path / "out"}
    line |= dict(zip(words[::2], words[1::2], strict=True))
    assert command("synthesize", *(word for pair in line.items() for word in pair)) == 2
    assert message in re.sub(r"[\s|\u2502]+", " ", capsys.readouterr().err)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("words", [[], ["--layout", "starvla"]])
def test_another_family_says_how_it_is_written(tmp_path, capsys, words):
    assert command("synthesize", "--config", "demo", *words, "--out", tmp_path / "out") == 2
    assert "is written as --layout hf or --layout authors" in capsys.readouterr().err


def test_numbers_that_are_not_finite_are_refused_when_they_are_read(run, tmp_path, capsys):
    folder = run()
    edit_weights(folder, lambda s: s[QUERY].__setitem__((0, 0), np.nan))
    assert command("import", folder, "--out", tmp_path / "out") == 2
    assert "q_proj.weight holds NaN or infinity" in capsys.readouterr().err
