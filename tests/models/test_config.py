"""Parameter counts of the published configuration, and configurations that are refused."""

import dataclasses
import json

import pytest
import torch

from models.anchorvla4d.config import PromptConfig
from models.anchorvla4d.model import AnchorVLA4D
from models.anchorvla4d.presets import CONFIGS, demo, full, shallow, xlerobot
from models.families import read_config, to_json
from models.policy_config import NormalizationConfig


def on_meta(config):
    with torch.device("meta"):
        return AnchorVLA4D(config)


def count(module):
    return sum(p.numel() for p in module.parameters())


def test_the_full_configuration_has_the_published_parameter_counts():
    model = on_meta(full())
    assert count(model.vlm) == pytest.approx(3.755e9, abs=0.0005e9)
    assert count(model.action_head) == pytest.approx(478.9e6, abs=0.05e6)
    assert count(model.info_sharing) == pytest.approx(172.6e6, abs=0.05e6)
    assert count(model) == pytest.approx(4.406e9, abs=0.0005e9)
    modulations = [*model.action_head.blocks, model.action_head.final_layer]
    assert sum(count(m.adaLN_modulation) for m in modulations) == pytest.approx(151e6, rel=0.03)


def test_xlerobot_makes_chunks_of_fifty_actions_of_twelve_joints():
    config = xlerobot()
    head = on_meta(config).action_head
    assert tuple(head.pos_embed.shape) == (1, 50, 1024)
    assert tuple(head.x_embedder.weight.shape) == (1024, 12)
    assert tuple(head.final_layer.linear.weight.shape) == (12, 1024)
    assert tuple(head.state_linear.weight.shape) == (12, 12)
    assert len(config.normalization.action) == len(config.normalization.state) == 12
    assert (
        dataclasses.replace(config, head=full().head, normalization=full().normalization) == full()
    )


def test_shallow_keeps_the_widths_and_ends_in_full_attention():
    config = shallow(full(), vision=2, language=3, spatial=4, head=5)
    depths = (
        config.vision.depth,
        config.language.num_hidden_layers,
        config.spatial.depth,
        config.head.depth,
    )
    assert depths == (2, 3, 4, 5)
    assert config.vision.fullatt_block_indexes == (1,)
    assert config.spatial.indices == (1, 3)
    assert dataclasses.replace(config.vision, depth=32, fullatt_block_indexes=(7, 15, 23, 31)) == (
        full().vision
    )


@pytest.mark.parametrize("name", CONFIGS)
def test_a_configuration_survives_its_file(name, tmp_path):
    config = CONFIGS[name]()
    path = tmp_path / "config.json"
    path.write_text(to_json(config))
    assert read_config(path) == config


def test_whole_numbers_are_read_as_floats(tmp_path):
    raw = json.loads(to_json(full()))
    raw["language"]["rope_theta"] = 1000000
    path = tmp_path / "config.json"
    path.write_text(json.dumps(raw))
    assert read_config(path) == full()


@pytest.mark.parametrize(
    ("part", "fields", "message"),
    [
        ("vision", {"num_heads": 3}, "vision.num_heads=3 must divide vision.hidden_size=128"),
        ("vision", {"num_heads": 0}, "vision.num_heads=0 must divide"),
        ("vision", {"num_heads": 64}, "vision head width must be a multiple of 4.*got 128/64"),
        ("vision", {"fullatt_block_indexes": (3,)}, r"must lie in \[0, 3\), got \(3,\)"),
        ("vision", {"window_size": 20}, "positive multiple of a merged token's side, 28 pixels"),
        ("vision", {"window_size": 0}, "positive multiple"),
        ("language", {"num_attention_heads": 3}, "num_attention_heads=3 must divide"),
        ("language", {"num_key_value_heads": 3}, "num_key_value_heads=3 must divide"),
        ("language", {"mrope_section": (4, 6, 8)}, "half the head width 16, got"),
        ("spatial", {"num_heads": 5}, "spatial.num_heads=5 must divide spatial.dim=96"),
        ("language", {"mrope_section": (8, 8)}, "must hold three numbers that add up to half"),
        ("language", {"rms_norm_eps": 1.0}, "rms_norm_eps must be below 1, got 1.0"),
        ("spatial", {"indices": (1, 6)}, r"spatial.indices must lie in \[0, 6\)"),
        ("spatial", {"indices": (1, 1)}, r"spatial.indices must rise, got \(1, 1\)"),
        ("vision", {"patch_size": 0}, "positive multiple of a merged token's side, 0 pixels"),
        ("head", {"num_heads": 3}, "head.num_heads=3 must divide head.n_emb=128"),
        ("head", {"num_inference_timesteps": 0}, "timesteps=0 must divide"),
        ("head", {"num_inference_timesteps": -5}, "timesteps=-5 must divide"),
        ("head", {"num_inference_timesteps": 4}, "timesteps=4 must divide num_train_timesteps=10"),
    ],
)
def test_a_network_that_cannot_be_built_is_refused(part, fields, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(getattr(demo(), part), **fields)


def numbers_of(part):
    """Every field of a network that is a number, or several."""
    for field in dataclasses.fields(part):
        value = getattr(part, field.name)
        for wrong in (-1, 0, 2**40) if isinstance(value, int) else ():
            yield field.name, wrong
        for wrong in (0.0, -1.0, float("nan"), float("inf")) if isinstance(value, float) else ():
            yield field.name, wrong
        if isinstance(value, tuple):
            yield field.name, (-1, *value[1:])


@pytest.mark.parametrize(
    ("part", "name", "wrong"),
    [
        (part, name, wrong)
        for part in ("vision", "language", "spatial", "head")
        for name, wrong in numbers_of(getattr(demo(), part))
    ],
)
def test_a_number_that_cannot_be_meant_is_refused_by_name(part, name, wrong):
    with pytest.raises(ValueError, match=f"{part}|{name}"):
        dataclasses.replace(getattr(demo(), part), **{name: wrong})


@pytest.mark.parametrize("text", ["NaN", "Infinity", "0", "-1e6", "1e400"])
def test_a_rotary_base_that_makes_no_angles_is_refused_in_a_file(tmp_path, text):
    path = tmp_path / "config.json"
    path.write_text(to_json(demo()).replace('"rope_theta": 10.0', f'"rope_theta": {text}'))
    with pytest.raises(
        ValueError, match=r"config.json: language.rope_theta must be a finite number"
    ):
        read_config(path)


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{anchor} {frame}", r"must hold \{instruction\} once"),
        ("{anchor} {frame} {frame} {instruction}", r"must hold \{frame\} once"),
        ("{instruction} {anchor} {frame}", "in this order: what comes before the frame"),
        ("{frame} {anchor} {instruction}", "in this order"),
    ],
)
def test_a_prompt_that_cannot_be_cached_is_refused(template, message):
    with pytest.raises(ValueError, match=message):
        PromptConfig(template=template)


NORMALIZATION = {
    "action": ("q99",),
    "state": ("q99",),
    "action_units": ("m",),
    "state_units": ("m",),
}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"action": ("q98",)}, r"normalization.action: unknown modes \['q98'\]"),
        ({"state_units": ("m", "m")}, "normalization.state has 1 modes but 2 units"),
    ],
)
def test_a_normalization_that_makes_no_sense_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        NormalizationConfig(**(NORMALIZATION | fields))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"model_type": "openvla"}, "model_type must be 'anchorvla4d', got 'openvla'"),
        ({"language": full().language}, "out_hidden_size=128 must equal language.hidden_size=2048"),
        (
            {"head": full().head},
            "action has 4 modes for head.action_dim=7; give one mode, and one of action_units, per",
        ),
    ],
)
def test_parts_that_do_not_fit_together_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(demo(), **fields)


def edited(edit):
    raw = json.loads(to_json(demo()))
    edit(raw)
    return json.dumps(raw)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not JSON"),
        ("[]", "config.json: must be an object, got list"),
        (edited(lambda c: c.update(vision=3)), "vision must be an object, got int"),
        (edited(lambda c: c["head"].update(deph=3)), r"unknown fields \['head.deph'\]"),
        (edited(lambda c: c["head"].pop("depth")), r"missing fields \['head.depth'\]"),
        (edited(lambda c: c["head"].update(depth="3")), "head.depth must be int, got '3'"),
        (edited(lambda c: c["head"].update(depth=True)), "head.depth must be int, got True"),
        (edited(lambda c: c["head"].update(mlp_ratio=False)), "mlp_ratio must be float, got False"),
        (edited(lambda c: c["spatial"].update(indices=3)), "spatial.indices must be a list, got 3"),
        (
            edited(lambda c: c["normalization"].update(state_units=["deg"] * 4)),
            "normalization.state_units must be one of .*'rad'.*got 'deg'",
        ),
        (edited(lambda c: c["head"].update(num_heads=3)), "head.num_heads=3 must divide"),
    ],
)
def test_a_file_that_does_not_fit_is_refused_with_its_path(text, message, tmp_path):
    path = tmp_path / "config.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=message) as caught:
        read_config(path)
    assert str(caught.value).startswith(str(path))
