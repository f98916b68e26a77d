"""Folders of VLA-Adapter and its relatives, damaged, foreign or hostile: refused by name."""

import json
import os
import re
import shutil

import numpy as np
import pytest
import torch

from models.checkpoint import open_checkpoint
from models.errors import CheckpointError
from models.families import to_json
from models.vlaadapter.presets import tiny
from tests.models import prismatic_folders
from tests.models.prismatic_folders import (
    CONFIG,
    HEAD,
    OWN,
    PREPROCESSOR,
    PROPRIO,
    STATISTICS,
    WEIGHTS,
    edit_part,
    edit_tensors,
    read,
    synthesized,
)
from tests.models.starvla_runs import numbers
from tests.models.synthesized import POINTER, command, edit_json


@pytest.fixture(autouse=True)
def family(monkeypatch):
    prismatic_folders.register(monkeypatch)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        prismatic_folders.register(patch)
        return synthesized(tmp_path_factory.mktemp("folders") / "made", "like-libero")


@pytest.fixture
def folder(made, tmp_path):
    return shutil.copytree(made, tmp_path / "folder")


def refused(folder, words):
    with pytest.raises(CheckpointError, match=words) as error:
        open_checkpoint(folder)
    assert str(folder) in str(error.value)


RAD = {"rope_scaling": {"type": "linear", "factor": 2.0}}


def shortly(value):
    """Of a case; of a function nothing, whose address is another in every worker."""
    return "" if callable(value) else str(value)[:40]


SETTINGS = [
    ({"use_fused_vision_backbone": False}, "is a policy with a single vision tower, which is not"),
    ({"vision_backbone_id": "siglip-vit-so400m"}, "vision_backbone_id='siglip-vit-so400m' is not"),
    ({"timm_model_ids": ["vit_large_patch14_reg4_dinov2.lvd142m", "vit_so400m_patch14_siglip_384"]},
     r"timm_model_ids=.*siglip_384'\] is not honoured, only \['vit_large_patch14_reg4_dinov2.lvd"),
    ({"timm_override_act_layers": [None, "quick_gelu"]}, "timm_override_act_layers=.* is not hon"),
    ({"arch_specifier": "no-align+gelu-mlp"}, "arch_specifier='no-align.gelu-mlp' is not honoured"),
    ({"image_resize_strategy": "letterbox"}, "image_resize_strategy='letterbox' is not honoured"),
    ({"llm_backbone_id": "llama2-7b-pure"}, "'llama2-7b-pure' is not honoured.*OpenVLA and OpenV"),
    ({"llm_backbone_id": "phi-2-3b"}, "llm_backbone_id='phi-2-3b' is not honoured, only 'qwen25"),
    ({"image_sizes": [224, 224]}, r"image_sizes=\[224, 224\], and the weights have .* of 56 x 56"),
    ({"text_config": [1]}, r"text_config must be an object, got \[1\]"),
    ({"text_config": None}, "text_config must state num_attention_heads, rope_theta, rms_norm_eps"),
]  # fmt: skip
TEXT = [
    ({"hidden_size": 896}, "text_config.hidden_size=896, and the weights say 128"),
    ({"intermediate_size": 255}, "text_config.intermediate_size=255, and the weights say 256"),
    ({"num_hidden_layers": 24}, "text_config.num_hidden_layers=24, and the weights say 3"),
    ({"num_key_value_heads": 4}, "text_config.num_key_value_heads=4, and the weights say 2"),
    ({"vocab_size": 151936}, "text_config.vocab_size=151936, and the weights say 512"),
    ({"num_attention_heads": 3}, "num_attention_heads=3 must divide 128"),
    ({"num_attention_heads": 4.0}, "num_attention_heads must be a number above zero, got 4.0"),
    ({"num_attention_heads": True}, "num_attention_heads must be a number above zero, got True"),
    ({"rope_theta": "1e6"}, "text_config.rope_theta must be a number above zero, got '1e6'"),
    ({"rms_norm_eps": 0}, "text_config.rms_norm_eps must be a number above zero, got 0"),
    ({"rms_norm_eps": None}, "text_config.rms_norm_eps must be a number above zero, got None"),
    ({"model_type": "llama"}, "text_config.model_type='llama' is not honoured, only 'qwen2'"),
    ({"hidden_act": "gelu"}, "text_config.hidden_act='gelu' is not honoured, only 'silu'"),
    ({"use_sliding_window": True}, "text_config.use_sliding_window=True is not honoured"),
    ({"use_mrope": True}, "text_config.use_mrope=True is not honoured"),
    (RAD, "rotary positions of type 'linear' are not honoured"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "words"), SETTINGS, ids=shortly)
def test_settings_that_are_not_honoured_are_refused(folder, change, words):
    edit_json(folder / CONFIG, lambda raw: raw.update(change))
    refused(folder, words)


@pytest.mark.parametrize(("change", "words"), TEXT, ids=shortly)
def test_settings_of_the_decoder_that_its_tensors_contradict_are_refused(folder, change, words):
    edit_json(folder / CONFIG, lambda raw: raw["text_config"].update(change))
    refused(folder, words)


def normalized(index, **change):
    def edit(raw):
        raw["tvf_normalize_params"][index].update(change)

    return edit


def stated(**change):
    return lambda raw: raw.update(change)


MEANS = [[0.485, 0.456, 0.406], [0.5, 0.5, 0.5]]
IMAGES = [
    (stated(image_processor_type="SiglipImageProcessor"), "image_processor_type='SiglipImageProc"),
    (stated(image_resize_strategy="resize-crop"), "image_resize_strategy='resize-crop' is not hon"),
    (stated(input_sizes=[[3, 224, 224]] * 2), "input_sizes=.* is not honoured, only .*3, 56, 56"),
    (stated(interpolations=["bicubic", "bilinear"]), "interpolations=.*'bilinear'"),
    (stated(means=[[0.48, 0.456, 0.406], [0.5, 0.5, 0.5]]), r"means=\[\[0.48, .* is not honoured"),
    (stated(means=MEANS[::-1]), "means=.* is not honoured"),
    (stated(stds=MEANS), "stds=.* is not honoured"),
    (normalized(0, mean=MEANS[0]), r"tvf_normalize_params=.*0.485, .* only .*0.484375"),
    (normalized(1, std=[0.5, 0.5, 0.25]), "tvf_normalize_params="),
    (normalized(1, inplace=True), "tvf_normalize_params="),
    (stated(tvf_crop_params=[{"output_size": [50, 50]}] * 2), "tvf_crop_params="),
    (stated(tvf_do_letterbox=True), "tvf_do_letterbox=True is not honoured, only False"),
    (stated(tvf_letterbox_fill=[127] * 3), "tvf_letterbox_fill="),
    (lambda raw: raw["tvf_resize_params"][0].update(antialias=False), "tvf_resize_params="),
    (lambda raw: raw["tvf_resize_params"][1].update(interpolation=2), "tvf_resize_params="),
    (stated(use_fused_vision_backbone=False), "use_fused_vision_backbone=False is not honoured"),
    (stated(sharpen=1, blur=2), r"unknown settings \['blur', 'sharpen'\]: whether they change"),
    (lambda raw: raw.pop("tvf_normalize_params"), "tvf_normalize_params is missing, and says"),
]  # fmt: skip


@pytest.mark.parametrize(("edit", "words"), IMAGES, ids=shortly)
def test_settings_of_pictures_that_are_not_honoured_are_refused(folder, edit, words):
    edit_json(folder / PREPROCESSOR, edit)
    refused(folder, f"preprocessor_config.json: {words}")


def rest_away(raw):
    """All but what pictures are normalized with."""
    for name in raw.keys() - {"tvf_normalize_params"}:
        del raw[name]


def test_means_may_be_stated_before_they_were_rounded_and_left_out(folder):
    edit_json(folder / PREPROCESSOR, stated(means=MEANS, stds=[[0.229, 0.224, 0.225], [0.5] * 3]))
    before = open_checkpoint(folder).config
    edit_json(folder / PREPROCESSOR, rest_away)
    assert open_checkpoint(folder).config == before


ROBOT = "libero_spatial_no_noops"


def robots(**entries):
    def edit(raw):
        raw.clear()
        raw.update(entries)

    return edit


def entry(action=7, state=8, **mask):
    return {"action": {**numbers(action), **mask}, "proprio": numbers(state)}


MIXED = {"libero_a": entry(mask=[True] * 7), "libero_b": entry(mask=[True] * 6 + [False])}
ROBOTS = [
    (robots(my_arm=entry()), "statistics my_arm name no robot whose constants are known, libero, .*"
     "anchorvla.json beside config.json"),
    (robots(libero_a=entry(), calvin_b=entry()), "statistics of calvin and libero, whose"),
    (robots(aloha1=entry()), "the weights have 7 dimensions of action, aloha 14; say it in anch"),
    (robots(bridge_orig=entry()), "the weights have 8 dimensions of state, bridge 7"),
    (robots(**MIXED), "the masks of libero_a, libero_b differ"),
    (robots(libero=entry(mask=[True] * 6)), r"libero.action.mask must hold 7 of true"),
    (robots(libero=entry(mask=[1] * 7)), "libero.action.mask must hold 7 of true or false"),
    (robots(libero=entry(mask="all")), "mask must hold 7 of true or false, got 'all'"),
    (robots(libero=entry(action=6)), "has 6 numbers for 7 dimensions"),
    (robots(libero=entry(state=7)), "has 7 numbers for 8 dimensions"),
    (robots(libero={"action": numbers(7)}), r"lacks 'state' \(or proprio\)"),
    (robots(), "holds no robot"),
    (lambda raw: raw[ROBOT]["proprio"].update(mask=[True] * 7 + [False]),
     "libero_spatial_no_noops.proprio.mask=.*: the authors' code clips what is not normalized"),
    (lambda raw: raw[ROBOT]["proprio"].update(mask=1), "proprio.mask=1"),
    (lambda raw: raw[ROBOT]["action"].pop("q99"), "the statistics hold no 'q99'"),
    (lambda raw: raw[ROBOT]["proprio"].pop("q01"), "the statistics hold no 'q01'"),
]  # fmt: skip


@pytest.mark.parametrize(("edit", "words"), ROBOTS, ids=shortly)
def test_statistics_that_do_not_tell_a_policy_are_refused(folder, edit, words):
    edit_json(folder / STATISTICS, edit)
    refused(folder, words)


def test_nothing_tells_how_many_pictures_a_policy_of_bridge_sees(folder):
    edit_part(
        folder,
        lambda s: {n: v[:, :7].clone() if n == "fc1.weight" else v for n, v in s.items()},
        PROPRIO,
    )
    edit_json(folder / STATISTICS, robots(bridge_orig=entry(state=7)))
    refused(folder, 'how many pictures a policy of bridge sees; say it in anchorvla.json .*"views"')
    edit_json(folder / OWN, lambda raw: raw.update(views=["frame"]))
    config = open_checkpoint(folder).config
    assert config.views == ("frame",) and config.head.action_horizon == 5


NORMALIZATION = {"action": ["q99"] * 7, "action_units": ["m"] * 7, "state": [], "state_units": []}
OWNS = [
    ({"action_horizon": 0}, "action_horizon must be at least 1, got 0"),
    ({"action_horizon": "8"}, "action_horizon must be int \\| None, got '8'"),
    ({"action_horizon": True}, "action_horizon must be int \\| None, got True"),
    ({"views": []}, "views must name a camera at least"),
    ({"views": "frame"}, "views must be a list, got 'frame'"),
    ({"views": ["frame", "frame"]}, "views"),
    ({"tower_heads": [4]}, r"tower_heads must hold two numbers from 1, got \(4,\)"),
    ({"tower_heads": [4, 0]}, "tower_heads must hold two numbers from 1"),
    ({"tower_heads": [4, 5]}, "vision.fused_featurizer.num_heads=5 must divide"),
    ({"takes_state": False}, r"unknown fields \['takes_state'\]"),
    ({"normalization": {"action": []}}, "missing fields .*normalization.state"),
    ({"normalization": NORMALIZATION}, "normalization.state has 0 modes for 8 dimensions"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "words"), OWNS, ids=shortly)
def test_a_file_of_ones_own_that_says_something_else_is_refused(folder, change, words):
    edit_json(folder / OWN, lambda raw: raw.update(change))
    refused(folder, words)


def test_towers_of_other_sizes_need_their_heads_said(folder):
    (folder / OWN).unlink()
    refused(folder, r"featurizer.\* have depth=3, and vit_large_patch14_reg4_dinov2.lvd142m 24. If"
            r".*anchorvla.json beside config.json: {.tower_heads.: \[16, 16\]}")  # fmt: skip


class Attack:
    """What a pickle that is trusted would run."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("name", [HEAD, PROPRIO])
@pytest.mark.parametrize("place", ["beside", "instead", "inside"])
def test_a_malicious_pickle_is_refused_and_not_run(folder, tmp_path, place, name):
    ran = tmp_path / "ran"
    attack = Attack(ran)
    state = torch.load(folder / name, weights_only=True)
    content = {"beside": state | {"x": attack}, "instead": attack, "inside": {"a": [attack]}}
    torch.save(content[place], folder / name)
    refused(folder, f"{name}: .*(without running its code|is no tensor but)")
    assert command("import", folder, "--out", tmp_path / "out") == 2
    assert not ran.exists() and not (tmp_path / "out").exists()


def test_a_head_of_the_plain_version_is_refused_with_the_reason(folder):
    def plain(state):
        renamed = {n.replace(".k_self.", ".k_proj.").replace(".v_self.", ".v_proj."): v
                   for n, v in state.items()}  # fmt: skip
        return {n: v for n, v in renamed.items() if not re.search("_task|_adapter|film", n)}

    edit_part(folder, plain)
    refused(folder, f"{HEAD}: of the plain VLA-Adapter, and only its Pro version is here: .* all "
            "actions of a chunk are equal")  # fmt: skip


def test_a_head_of_openvla_oft_is_refused(folder):
    edit_part(folder, lambda s: {n: v for n, v in s.items() if "_blocks" not in n or ".ffn." in n})
    refused(folder, "a head as of OpenVLA-OFT, not here")


def llama(state):
    for name in [name for name in state if re.search(r"[qkv]_proj\.bias", name)]:
        del state[name]


def test_policies_on_a_llama_are_refused_by_their_names(folder):
    edit_tensors(folder, llama)
    refused(folder, r"the decoder is a Llama's, as of OpenVLA-OFT\. ")
    (folder / HEAD).unlink()
    refused(folder, r"the decoder is a Llama's, as of OpenVLA\. OpenVLA and OpenVLA-OFT stand on")


def test_adapters_that_are_not_merged_are_refused(folder):
    (folder / "lora_adapter").mkdir()
    (folder / WEIGHTS).unlink()
    refused(folder, "lora_adapter: adapters by peft, as LoRA: merge the adapters")
    (folder / CONFIG).unlink()
    refused(folder, "lora_adapter: adapters by peft, as LoRA: merge the adapters .*no merged weigh")


@pytest.mark.parametrize(
    ("rename", "words"),
    [
        (lambda n: f"base_model.model.{n}", "base_model.model.* wrapped by peft, as LoRA: merge"),
        (lambda n: n.replace("q_proj.weight", "q_proj.base_layer.weight"), "names wrapped by peft"),
        (lambda n: n.replace("fc1.weight", "fc1.lora_A.weight"), "names wrapped by peft"),
        (lambda n: f"module.{n}", "names wrapped by torch's DistributedDataParallel"),
        (lambda n: f"_orig_mod.{n}", "names wrapped by torch.compile"),
        (lambda n: n.replace("vision_backbone.", "vision_backbone.vision_backbone."), "FiLM"),
        (lambda n: n.replace(".blocks.0.norm1.", ".blocks.0.block.norm1."), "FiLM"),
        (lambda n: n.replace(".blocks.1.norm1.weight", ".blocks.1.scale.weight"), "FiLM"),
        (lambda n: n.replace("fused_featurizer", "other"), "a policy with a single vision tower"),
        (lambda n: n.replace("projector.fc3", "projector.fc4"), "hold no projector.fc3.weight"),
        (lambda n: n.replace("action_queries", "queries"), "hold no action_queries.weight of 2 ax"),
        (lambda n: n.replace("layers.1.", "layers.3."), r"hold layers \[0, 2, 3\] of lang"),
    ],
)  # fmt: skip
def test_names_of_another_policy_or_of_a_wrapper_are_refused(folder, rename, words):
    def edit(state):
        renamed = {rename(name): value for name, value in state.items()}
        state.clear()
        state.update(renamed)

    edit_tensors(folder, edit)
    refused(folder, words)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("vision_backbone--9_checkpoint.pt", "of towers that the instruction modulates .FiLM"),
        ("noisy_action_projector--9_checkpoint.pt", "of a head that denoises actions .diffusion"),
        ("action_head--9_checkpoint.pt", f"action_head--9_checkpoint.pt and {HEAD} may both"),
        ("proprio_projector--9_checkpoint.pt", f"proprio_projector--9_checkpoint.pt and {PROPRIO}"),
    ],
)  # fmt: skip
def test_a_file_too_many_is_refused(folder, name, words):
    shutil.copyfile(folder / PROPRIO, folder / name)
    refused(folder, words)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        (HEAD, "no action_head--.checkpoint.pt in it, without which there is no policy; copy it"),
        (PROPRIO, "no proprio_projector--.checkpoint.pt in it, without which"),
        (CONFIG, "config.json: missing; copy it"),
        (PREPROCESSOR, "preprocessor_config.json: missing; copy it"),
        (STATISTICS, "dataset_statistics.json: missing; copy it"),
        ("tokenizer.json", "tokenizer.json: missing; copy it"),
        (WEIGHTS, "neither model.safetensors nor model.safetensors.index.json in it"),
    ],
)
def test_a_file_that_is_missing_is_named(folder, name, words):
    (folder / name).unlink()
    refused(folder, words)
    (folder / name).write_text(POINTER)
    if name != CONFIG:  # of which nothing tells then what the folder is
        refused(folder, f"{name}: .*a git-lfs pointer")


def test_tensors_that_do_not_fit_are_all_listed_by_their_own_names(folder):
    def tensors(state):
        state["vision_backbone.featurizer.blocks.2.extra"] = torch.zeros(1)
        state["language_model.model.norm.weight"] = torch.zeros(127)
        del state["projector.fc2.bias"]

    def head(state):
        state["module.model.mlp_resnet_blocks.0.film_gen.1.weight"] = torch.zeros(1)
        state["model.fc2.bias"] = state["module.model.fc2.bias"]
        del state["module.model.mlp_resnet_blocks.1.gating_factor"]

    edit_tensors(folder, tensors)
    edit_part(folder, head)
    with pytest.raises(CheckpointError) as error:
        open_checkpoint(folder)
    for words in (
        "missing tensors: action_head.model.mlp_resnet_blocks.1.gating_factor, projector.fc2.bias",
        "extra tensors: vision_backbone.featurizer.blocks.2.extra, module.model.mlp_resnet_blocks.0"
        ".film_gen.1.weight",
        "under both of their names: module.model.fc2.bias and model.fc2.bias",
        "another shape: language_model.model.norm.weight [127], expected [128]",
    ):
        assert words in str(error.value)


def test_sizes_that_no_policy_has_are_refused(folder):
    def cut(state):
        name = "vision_backbone.featurizer.pos_embed"
        state[name] = state[name][:, :15].clone()

    edit_tensors(folder, cut)
    refused(folder, "pos_embed has 15 places, which are no square")


def test_a_head_needs_a_block_for_every_layer(folder):
    edit_part(folder, lambda s: {n: v for n, v in s.items() if "_blocks.2." not in n})
    refused(folder, "the head has 2 blocks and the decoder 3 layers, of which each block reads one")


def test_numbers_that_are_not_finite_are_refused_when_they_are_read(folder, tmp_path, capsys):
    def edit(state):
        state["fc1.bias"][3] = np.nan

    edit_part(folder, edit, PROPRIO)
    assert command("import", folder, "--out", tmp_path / "out") == 2
    assert "fc1.bias holds NaN or infinity" in capsys.readouterr().err


def test_a_policy_file_of_ours_beside_it_is_refused(folder):
    (folder / "policy.json").write_text(to_json(tiny()))
    refused(folder, "policy.json: beside a config.json that tells a policy by itself; remove it")


def test_a_folder_of_another_model_is_none_of_these(folder):
    edit_json(folder / CONFIG, lambda raw: raw.update(model_type="llava", architectures=["Llava"]))
    refused(folder, "model_type 'llava'")
    edit_json(folder / CONFIG, lambda raw: raw.update(architectures=["OpenVLAForActionPrediction"]))
    assert open_checkpoint(folder).said[0] == "policy: VLA-Adapter, Pro"
    assert json.dumps(read(folder / CONFIG))
