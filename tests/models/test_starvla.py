"""Run folders of starVLA: what is written is read back, and each rule by which one is read."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import save_file
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from models.checkpoint import load_checkpoint, normalizations, open_checkpoint
from models.families import family_of
from models.layouts.starvla_mixes import MIXES, ROBOTS, modes, robot_of
from models.layouts.starvla_vlm import KNOWN, base_model, vision_language
from models.qwengr00t.model import QwenGR00T
from models.random_weights import random_weights
from runtime.normalization import MODES
from tests.models import starvla_runs
from tests.models.starvla_runs import (
    PRESETS,
    PT,
    SAFETENSORS,
    SEED,
    edit_weights,
    edit_yaml,
    numbers,
    settings,
    synthesized,
    two_arms,
    write_statistics,
)
from tests.models.synthesized import command
from tests.oracles import END_TO_END, relative_error

FORMS = {
    "as it is": (),
    "newer names": ("--names", "newer"),
    "safetensors": ("--weights", "safetensors"),
    "older settings": ("--settings", "older"),
    "all of these": ("--names", "newer", "--weights", "safetensors", "--settings", "older"),
}


@pytest.fixture(autouse=True)
def family(monkeypatch):
    starvla_runs.register(monkeypatch)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Folders by configuration and form, made once; not to be changed."""
    base, kept = tmp_path_factory.mktemp("runs"), {}

    def run(name, form="as it is"):
        if (name, form) not in kept:
            kept[name, form] = synthesized(base / f"{name} {form}", name, *FORMS[form])
        return kept[name, form]

    return run


@pytest.fixture
def run(written, tmp_path):
    """One of one's own to change."""
    return lambda name, form="as it is": shutil.copytree(written(name, form), tmp_path / "run")


def plain(config):
    return dataclasses.replace(config, description="", license="")


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", PRESETS)
def test_a_run_comes_back_bit_for_bit_in_every_form(written, name, form):
    opened = open_checkpoint(written(name, form))
    config = PRESETS[name]()
    assert plain(opened.config) == plain(config)
    assert opened.image.size == (224, 224)
    drawn = random_weights(config, SEED, outlier_channels=2, dtype=torch.bfloat16)
    assert opened.weights.keys() == drawn.keys()
    for parameter, source in opened.weights.items():
        head = not parameter.startswith("vlm.")
        assert source.dtype == (torch.float32 if head else torch.bfloat16)
        assert torch.equal(source.read().float(), drawn[parameter].read().float()), parameter
    flags = {"eventvla": ["_keyframe_annotations_observed"]}.get(config.model_type, [])
    unused = {"qwen_vl_interface.model.lm_head.weight", *flags}
    assert {u.name for u in opened.weights.unused} == unused
    frameworks = {"qwengr00t": "QwenGR00T", "qwenoft": "QwenOFT", "eventvla": "EventVLA"}
    framework = frameworks[config.model_type]
    assert opened.said[0] == f"framework: {framework}"


@pytest.mark.parametrize("name", PRESETS)
@torch.no_grad()
def test_its_actions_are_those_of_the_libraries_on_pictures_of_its_size(written, name):
    checkpoint = load_checkpoint(written(name))
    family = family_of(checkpoint.config)
    random = np.random.default_rng(0)
    seen = {}
    for given, declared in checkpoint.inputs((120, 90)).items():
        if declared.kind == "image":
            seen[given] = random.integers(0, 256, (90, 120, 3), np.uint8)
        elif declared.memory:
            seen[given] = np.array([len(declared.memory.slots) - 1], np.float32)
        elif declared.kind in ("noise", "vector"):
            seen[given] = random.standard_normal(declared.shape, np.float32)
    got = family.actions(
        checkpoint.model, checkpoint.parts, checkpoint.image, checkpoint.tail_ids("push it"), seen
    )
    oracle = family.reference(checkpoint.model, checkpoint.tokenizer, checkpoint.image)
    want = oracle(*oracle.prepare(instruction="push it", **seen)).numpy()
    assert relative_error(got, want) <= END_TO_END
    taken = dataclasses.replace(checkpoint.image, size=None)
    other = family.actions(
        checkpoint.model, checkpoint.parts, taken, checkpoint.tail_ids("push it"), seen
    )
    assert relative_error(other, want) > 10 * END_TO_END


def test_a_state_dict_that_torch_itself_saved_is_read(run):
    """With the order and the metadata of modules, and an lm_head that shares its storage."""
    folder = run("bridge-like")
    before = {n: source.read().clone() for n, source in open_checkpoint(folder).weights.items()}

    class Interface(torch.nn.Module):
        pass

    state = torch.load(folder / PT, weights_only=True)
    root = Interface()
    for name, value in state.items():
        module, (*parts, last) = root, name.split(".")
        for part in parts:
            if not hasattr(module, part):
                module.add_module(part, Interface())
            module = getattr(module, part)
        module.register_parameter(last, torch.nn.Parameter(value, requires_grad=False))
    model = root.qwen_vl_interface.model
    model.lm_head.weight = model.model.embed_tokens.weight
    torch.save(root.state_dict(), folder / PT)
    after = open_checkpoint(folder).weights
    assert all(torch.equal(after[name].read(), tensor) for name, tensor in before.items())


def test_import_writes_a_folder_of_our_own_and_says_what_it_saw(written, tmp_path, capsys):
    folder, out = written("two-arms"), tmp_path / "out"
    assert command("import", folder, "--out", out) == 0
    said = capsys.readouterr().out
    for line in (
        "framework: QwenGR00T", "base model: Qwen2.5-VL-synthesized",
        "weights: steps_1000_pytorch_model.pt", "head: 4 layers of width 24",
        "views: cam_high, cam_left_wrist, cam_right_wrist", "data mix: robotwin",
        "actions: 6 x 14: 12 min_max_or_zero, 2 binary", "state: 12 min_max_or_zero, 2 threshold",
        "left out: qwen_vl_interface.model.lm_head.weight of steps_1000_pytorch_model.pt: speaks",
    ):  # fmt: skip
        assert line in said
    run, own = load_checkpoint(folder), load_checkpoint(out)
    assert own.config == run.config and own.image == run.image
    assert own.statistics == run.statistics and own.sha256 != run.sha256
    assert own.model.state_dict().keys() == run.model.state_dict().keys()
    assert (out / "tokenizer.json").read_bytes() == run.tokenizer_file.read_bytes()
    for name, tensor in own.model.state_dict().items():
        assert torch.equal(tensor, run.model.state_dict()[name])


def test_config_check_says_what_a_run_is(written, capsys):
    for path in (written("bridge-like"), written("bridge-like") / PT):
        assert command("config", "--check", path) == 0
        said = capsys.readouterr().out
        assert "data mix: bridge\n" in said and "sound\n" in said
        assert "head      4 layers of width 24" in said and "state: none" in said


def steps(folder, *names):
    """Copies of the weights, whose first number tells which."""
    (folder / "final_model").mkdir()
    state = torch.load(folder / PT, weights_only=True)
    (folder / PT).unlink()
    for number, name in enumerate(names):
        state["action_model.future_tokens.weight"][0, 0] = number
        (torch.save if name.endswith(".pt") else save_file)(state, folder / name)


@pytest.mark.parametrize(
    ("names", "chosen"),
    [
        (("checkpoints/steps_900_pytorch_model.pt", "checkpoints/steps_12000_pytorch_model.pt"), 1),
        (("checkpoints/steps_99_pytorch_model.pt", "checkpoints/steps_9_model.safetensors"), 0),
        (("checkpoints/steps_5_pytorch_model.pt", "final_model/pytorch_model.pt"), 1),
        (("final_model/model.safetensors", "checkpoints/steps_7_pytorch_model.pt"), 0),
    ],
)  # fmt: skip
def test_the_last_step_is_read_or_the_one_that_is_named(run, names, chosen):
    folder = run("bridge-like")
    steps(folder, *names)
    name = "action_head.future_tokens.weight"
    opened = open_checkpoint(folder)
    assert opened.weights[name].read()[0, 0] == chosen
    assert f"weights: {names[chosen].split('/')[1]}" in opened.said
    for number, file in enumerate(names):
        assert open_checkpoint(folder / file).weights[name].read()[0, 0] == number


@pytest.mark.parametrize(
    ("edit", "horizon", "note"),
    [
        (lambda a: a.update(action_horizon=9), 9, None),
        (lambda a: a.update(future_action_window_size=a.pop("action_horizon")), 7, None),
        (lambda a: a.update(future_action_window_size=5), 6, None),
        (lambda a: a.update(future_action_window_size=15), 6, "action_horizon=6 is believed, fut"),
    ],
)
def test_the_length_of_a_chunk_in_either_spelling(run, edit, horizon, note):
    folder = run("bridge-like")
    edit_yaml(folder, lambda raw: edit(settings(raw, "framework", "action_model")))
    opened = open_checkpoint(folder)
    assert opened.config.chunk == (horizon, 7)
    assert [line for line in opened.said if "believed" in line] == (
        [line for line in opened.said if note in line] if note else []
    )
    assert bool(note) == any("believed" in line for line in opened.said)


@pytest.mark.parametrize(
    ("stated", "size"),
    [
        ({"obs_image_size": [140, 84]}, (84, 140)),  # Pillow's order, width first
        ({"image_size": [84, 140]}, (84, 140)),
        ({"default_image_resolution": [3, 84, 140]}, (84, 140)),
        ({"obs_image_size": [56, 56], "image_size": [84, 140]}, (56, 56)),
        ({"obs_image_size": None, "image_size": [84, 140]}, (84, 140)),
        ({}, (224, 224)),
    ],
)
def test_the_size_of_pictures_in_every_spelling(run, stated, size):
    folder = run("bridge-like")

    def edit(raw):
        data = settings(raw, "datasets", "vla_data")
        del data["obs_image_size"]
        data.update(stated)

    edit_yaml(folder, edit)
    assert open_checkpoint(folder).image.size == size


def test_settings_of_an_older_run_may_be_json_alone(run):
    folder = run("two-arms", "older settings")
    (folder / "config.yaml").unlink()
    assert plain(open_checkpoint(folder).config) == plain(two_arms())


def test_what_only_the_full_settings_say_fills_in(run):
    """A worker process looked include_state up, so config.yaml does not have it."""
    folder = run("two-arms")
    full = (folder / "config.yaml").read_text()
    edit_yaml(folder, lambda raw: settings(raw, "datasets", "vla_data").pop("include_state"))
    write_no_state = open_checkpoint(folder)
    assert not write_no_state.config.takes_state and write_no_state.config.head.state_dim == 14
    assert any("no include_state in the settings" in line for line in write_no_state.said)
    (folder / "config.full.yaml").write_text(full.replace("action_horizon: 6", "action_horizon: 8"))
    filled = open_checkpoint(folder)
    assert filled.config == dataclasses.replace(
        two_arms(), license="unstated", description=filled.config.description
    )


@pytest.mark.parametrize(
    ("said", "takes"), [(True, True), (False, False), ("True", True), ("False", False)]
)
def test_a_state_is_taken_where_the_run_had_one(run, said, takes):
    folder = run("two-arms")
    edit_yaml(folder, lambda raw: settings(raw, "datasets", "vla_data").update(include_state=said))
    config = open_checkpoint(folder).config
    assert config.takes_state == takes and config.state_dim == (14 if takes else 0)
    assert len(config.normalization.state) == config.state_dim


@pytest.mark.parametrize("name", ["two-arms", "bridge-like"])
@pytest.mark.parametrize("key", ["interleave_self_attention", "use_canonical_forward"])
def test_weights_tell_which_blocks_attend_to_what(run, name, key):
    """Whatever the settings say: two-arms is interleaved, bridge-like is all-cross."""
    folder, config = run(name), PRESETS[name]()
    wrong = not config.head.interleave_self_attention
    path = "framework", "action_model", "diffusion_model_cfg"
    edit_yaml(folder, lambda raw: settings(raw, *path).update({key: wrong}))
    opened = open_checkpoint(folder)
    assert plain(opened.config) == plain(config)
    assert any("and the weights say" in line for line in opened.said)
    edit_yaml(folder, lambda raw: settings(raw, *path).update({key: not wrong}))
    assert not any("and the weights say" in line for line in open_checkpoint(folder).said)


def test_a_head_as_wide_as_the_language_model_is_what_its_settings_say(tmp_path, monkeypatch):
    base = PRESETS["bridge-like"]()
    wide = dataclasses.replace(base.head, num_heads=16)
    for is_interleaved in (True, False):
        made = dataclasses.replace(
            base, head=dataclasses.replace(wide, interleave_self_attention=is_interleaved)
        )
        monkeypatch.setitem(PRESETS, "bridge-like", lambda made=made: made)
        starvla_runs.register(monkeypatch)
        folder = synthesized(tmp_path / str(is_interleaved), "bridge-like")
        assert open_checkpoint(folder).config.head == made.head


@pytest.mark.parametrize("widening", [1, 3])
def test_another_head_is_as_wide_as_its_weights(tmp_path, monkeypatch, widening):
    base = PRESETS["token-actions"]()
    made = dataclasses.replace(base, head=dataclasses.replace(base.head, widening=widening))
    monkeypatch.setitem(PRESETS, "token-actions", lambda: made)
    starvla_runs.register(monkeypatch)
    assert open_checkpoint(synthesized(tmp_path / "run", "token-actions")).config.head == made.head


@pytest.mark.parametrize(
    ("name", "before"),
    [
        (
            "bridge-like",
            "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n",
        ),
        ("qwen3", "<|im_start|>user\n"),
    ],
)
def test_a_turn_begins_as_the_base_model_s_chat_does(written, name, before):
    """Qwen2.5-VL's published template adds a system turn, Qwen3-VL's does not."""
    assert open_checkpoint(written(name)).config.prompt.before == before


def test_a_head_is_known_by_the_name_of_its_size(run):
    """DiT-B is 12 heads of 64; others state both."""
    folder = run("bridge-like")

    def edit(raw):
        dit = settings(raw, "framework", "action_model", "diffusion_model_cfg")
        del dit["num_attention_heads"], dit["attention_head_dim"]

    edit_yaml(folder, edit)
    with pytest.raises(ValueError, match="'DiT-B' has 12 heads of 64, the weights a width of 24"):
        open_checkpoint(folder)
    for kind, words in (("DiT-L", "32 heads of 48"), ("DiT-XL", "must be one of DiT-B, DiT-L")):
        edit_yaml(
            folder,
            lambda raw, kind=kind: settings(raw, "framework", "action_model").update(
                action_model_type=kind
            ),
        )
        with pytest.raises(ValueError, match=words):
            open_checkpoint(folder)


def test_tokenizer_and_image_settings_are_looked_for_where_they_may_be(run, tmp_path):
    folder = run("bridge-like")
    names = ("tokenizer.json", "preprocessor_config.json")
    inside, base = folder / "Qwen2.5-VL-synthesized", tmp_path / "models" / "Qwen2.5-VL-synthesized"
    want = open_checkpoint(folder)
    for name in names:
        (folder / name).rename(inside / name)
    moved = open_checkpoint(folder)
    assert moved.tokenizer_file == inside / "tokenizer.json" and moved.image == want.image
    shutil.copytree(inside, base)
    edit_yaml(
        folder, lambda raw: settings(raw, "framework", "qwenvl").update(base_vlm=str(base) + "/")
    )
    assert open_checkpoint(folder).tokenizer_file == base / "tokenizer.json"
    shutil.copyfile(inside / "tokenizer.json", folder / "tokenizer.json")
    assert open_checkpoint(folder).tokenizer_file == folder / "tokenizer.json"
    shutil.rmtree(base)
    assert open_checkpoint(folder).config == moved.config
    (folder / "tokenizer.json").unlink()
    (inside / "tokenizer.json").unlink()
    with pytest.raises(ValueError) as refused:
        open_checkpoint(folder)
    for words in (
        f"{folder / 'tokenizer.json'}: missing", "Copy tokenizer.json and preprocessor_config.json",
        str(inside),
    ):  # fmt: skip
        assert words in str(refused.value)


def test_the_published_base_models_need_no_settings_of_their_own(tmp_path):
    """Sizes of the 3 B model by name, with the rows of a vocabulary that grew."""
    for name, (vision, language) in KNOWN.items():
        grown = dataclasses.replace(language, vocab_size=153713)
        base = dataclasses.replace(two_arms(), vision=vision, language=grown)
        with torch.device("meta"):
            model = QwenGR00T(base)
        shapes = {n: tuple(t.shape) for n, t in model.state_dict().items()}
        found = base_model(tmp_path, f"./playground/Pretrained_models/{name}")
        assert vision_language(found, shapes) == (vision, grown)
        shapes = {n: s for n, s in shapes.items() if ".layers.35." not in n}
        with pytest.raises(ValueError, match="weights have num_hidden_layers=35, and base_vlm"):
            vision_language(found, shapes)


def test_what_a_file_beside_says_goes_before_the_table(run):
    folder = run("bridge-like")
    own = {"takes_state": True, "views": ["eye"]}
    (folder / "policy.json").write_text(json.dumps(own))
    with pytest.raises(ValueError, match="has 7 dimensions of state, data_mix 'bridge' 8"):
        open_checkpoint(folder)
    normalization = {
        "action": ["q99"] * 6 + ["identity"], "action_units": ["m/step"] * 7,
        "state": ["identity"] * 7, "state_units": ["m"] * 7,
    }  # fmt: skip
    (folder / "policy.json").write_text(json.dumps(own | {"normalization": normalization}))
    write_statistics(folder, arm={"action": numbers(7), "state": numbers(7)})
    config = open_checkpoint(folder).config
    assert config.views == ("eye",) and config.takes_state
    assert config.normalization.action == tuple(normalization["action"])
    edit_yaml(folder, lambda raw: settings(raw, "datasets", "vla_data").update(data_mix="mine"))
    assert open_checkpoint(folder).config == config


def test_statistics_keep_their_numbers_and_lose_their_mask(run):
    folder = run("two-arms")
    arms = {
        name: {"action": numbers(14, seed), "state": numbers(14, seed + 1), "num_trajectories": 3}
        for seed, name in enumerate(("clean", "random"))
    }
    write_statistics(
        folder,
        **{
            name: entry | {"action": entry["action"] | {"mask": [True] * 12 + [False] * 2}}
            for name, entry in arms.items()
        },
    )
    opened = open_checkpoint(folder)
    assert opened.statistics == {
        name: {kind: entry[kind] for kind in ("action", "state")} for name, entry in arms.items()
    }
    state, action = normalizations(opened.config, opened.statistics["random"], "random")
    assert state.modes == opened.config.normalization.state and action.binary.sum() == 2


def test_a_gripper_that_is_not_normalized_may_be_masked_or_not(run):
    """LIBERO's is in no mode: older runs mask it by its name, newer ones do not mask it."""
    folder = run("own")
    edit_yaml(
        folder, lambda raw: settings(raw, "datasets", "vla_data").update(data_mix="libero_all")
    )
    (folder / "policy.json").unlink()
    for mask in ([True] * 7, [True] * 6 + [False]):
        write_statistics(
            folder, franka={"action": numbers(7) | {"mask": mask}, "state": numbers(8)}
        )
        opened = open_checkpoint(folder)
        assert opened.config.normalization.action == ("min_max_or_zero",) * 6 + ("identity",)
        assert opened.config.views == ("primary_image", "wrist_image")
        assert opened.statistics == {"franka": {"action": numbers(7), "state": {}}}


def test_the_table_of_mixes_is_whole():
    assert {name for robots in MIXES.values() for name in robots} == ROBOTS.keys()
    for mix in MIXES:
        robot = robot_of(mix)
        for rows in (robot.action, robot.state):
            assert isinstance(rows, str) or set(modes(rows)) <= set(MODES)
    bridge, both = robot_of("bridge"), robot_of("bridge_rt_1")
    assert bridge.views == both.views == ("image_0",) and both.action == bridge.action
    assert "states of different units" in both.state
    assert modes(bridge.state) == ("q99_clipped",) * 7 + ("threshold",)


def test_robots_of_one_mix_have_to_act_alike(monkeypatch):
    monkeypatch.setitem(MIXES, "two grippers", ("libero_franka", "openpi_libero_franka"))
    monkeypatch.setitem(MIXES, "two cameras", ("metaworld_robot", "two views"))
    two = dataclasses.replace(ROBOTS["metaworld_robot"], views=("a", "b"))
    monkeypatch.setitem(ROBOTS, "two views", two)
    for mix in ("two grippers", "two cameras"):
        with pytest.raises(ValueError, match="holds robots that act in different ways; say it in"):
            robot_of(mix)


def test_names_are_those_of_transformers_before_and_since(written):
    """Since 4.52 as the library itself has them, before as in the published 3 B model."""
    newer, older = written("two-arms", "newer names"), written("two-arms")
    with torch.device("meta"):
        config = Qwen2_5_VLConfig.from_pretrained(newer / "Qwen2.5-VL-synthesized")
        library = Qwen2_5_VLForConditionalGeneration(config).state_dict().keys()
    found = {
        folder: {
            name.removeprefix("qwen_vl_interface.model.")
            for name in torch.load(folder / PT, weights_only=True)
            if not name.startswith("action_model.")
        }
        for folder in (newer, older)
    }
    assert found[newer] == library
    assert {name.split(".")[0] for name in found[older]} == {"model", "visual", "lm_head"}
    assert "model.layers.1.self_attn.q_proj.bias" in found[older]
    assert "visual.blocks.1.attn.qkv.weight" in found[older]


def test_older_settings_are_spelled_as_they_were(written):
    folder = written("two-arms", "older settings")
    raw = yaml.safe_load((folder / "config.yaml").read_text())
    assert raw == json.loads((folder / "config.json").read_text()) and "version_id" not in raw
    head, data = settings(raw, "framework", "action_model"), settings(raw, "datasets", "vla_data")
    assert head["future_action_window_size"] == 5 and "action_horizon" not in head
    assert "output_dim" not in head["diffusion_model_cfg"]
    assert data["default_image_resolution"] == [3, 224, 224] and "obs_image_size" not in data


def test_a_run_that_this_command_wrote_is_replaced_and_any_other_stays(written, tmp_path, capsys):
    folder = shutil.copytree(written("own"), tmp_path / "run")
    line = ("synthesize", "--family", "qwengr00t", "--config", "bridge-like", "--out", folder)
    assert command(*line) == 0
    assert not (folder / "policy.json").exists()
    (folder / "checkpoints" / "steps_9_pytorch_model.pt").write_text("mine")
    assert command(*line) == 8
    assert "steps_9_pytorch_model.pt is not of this command" in capsys.readouterr().err
    (folder / "checkpoints" / "steps_9_pytorch_model.pt").unlink()
    text = (folder / "config.yaml").read_text()
    (folder / "config.yaml").write_text(text.replace("# synth", "# trained, not synth"))
    assert command(*line) == 8
    assert "holds no synthesized weights" in capsys.readouterr().err


def test_weights_are_edited_where_they_lie(run):
    """What the other tests change is what is read."""
    folder = run("bridge-like")
    edit_weights(folder, lambda state: state["action_model.future_tokens.weight"].fill_(3))
    name = "action_head.future_tokens.weight"
    assert (open_checkpoint(folder).weights[name].read() == 3).all()
    assert not (folder / SAFETENSORS).exists()
