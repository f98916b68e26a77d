"""Layers that come and go compute what layers that stay do; and every fault of one layer is seen.

The same code as at full depth, on the demo's sizes. Images of 256 x 256 become 18 x 18 patches, so
that windows of three sizes differ from the whole image.
"""

import dataclasses
import json
import weakref

import numpy as np
import pytest
import torch
from torch import nn

import export.__main__
import models.anchorvla4d.engines
import models.networks.scale_dp
import models.split
from export.evidence import depth
from export.evidence.chains import on_meta, placed, run_libraries, run_stages
from export.evidence.config import DEPTH, DepthConfig
from export.evidence.depth import LIMIT, StageErrors, compare, golden_for, subject_of
from export.evidence.results import render_depth
from export.evidence.streamed import TABLE, Float64, RandomWeights, stream
from models.anchorvla4d.presets import demo, full
from models.anchorvla4d.reference import Composition
from models.checkpoint import normalizations
from models.init import image_of

CONFIG = DepthConfig(config="demo")
LAYER = "vlm.model.layers.{}."


@pytest.fixture(scope="module")
def subject():
    return subject_of(demo(), CONFIG)


@pytest.fixture(scope="module")
def weights():
    return RandomWeights(demo(), seed=CONFIG.seed, kept=("",))


@pytest.fixture(scope="module")
def golden(subject):
    return golden_for(subject)


@pytest.fixture(scope="module")
def heard(subject, weights, golden):
    """Of the libraries, in float32 and in float64."""
    kinds = (torch.float32, torch.float64)
    return [run_libraries(subject, weights, golden, dtype) for dtype in kinds]


@pytest.fixture
def errors(subject, weights, golden, heard):
    """The rows that our stages of another subject or other weights give."""

    def of(changed=subject, given=weights):
        parts, ours = run_stages(changed, given, golden)
        library, exact = (placed(told, changed, parts) for told in heard)
        return list(compare(parts, ours, library, exact))

    return of


def first_complaint(rows):
    return next((row.stage for row in rows if row.complaint), None)


@pytest.mark.parametrize("per_stage", [1, 2, None])
def test_every_stage_is_as_exact_as_the_libraries(subject, errors, per_stage):
    layers = subject_of(demo(), dataclasses.replace(CONFIG, layers_per_stage=per_stage)).layers
    rows = errors(dataclasses.replace(subject, layers=layers))
    counts = {1: (3, 4, 6), 2: (2, 2, 3), None: (1, 1, 1)}[per_stage]
    c = demo()
    assert len(rows) == 2 * counts[0] + 2 * counts[1] + counts[2] + 3 + 10 + 1
    assert (c.vision.depth, c.language.num_hidden_layers, c.spatial.depth) == (3, 4, 6)
    assert [row for row in rows if row.complaint] == []
    # Neither is compared with itself: two programs add up in another order.
    assert all(row.of_libraries > 0 and row.of_ours > 0 for row in rows)


def swap_layers(name):
    """The weights of the second and the third layer of the decoder, one for the other."""
    one, other = LAYER.format(1), LAYER.format(2)
    if name.startswith(one):
        return name.replace(one, other)
    return name.replace(other, one)


def changed_config(network, **fields):
    whole = demo()
    return dataclasses.replace(
        whole, **{network: dataclasses.replace(getattr(whole, network), **fields)}
    )


FAULTS = {
    "full attention in another block": ("vision", {"fullatt_block_indexes": (1,)}, "_vision_1"),
    "rope sections in another order": ("language", {"mrope_section": (6, 4, 6)}, "prefix_0"),
    "another epsilon": ("language", {"rms_norm_eps": 1e-5}, "prefix_0"),
    "a tap of another block": ("spatial", {"indices": (1, 2)}, "spatial_2"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_wrong_setting_is_seen_at_its_stage(subject, errors, fault):
    network, fields, stage = FAULTS[fault]
    rows = errors(dataclasses.replace(subject, config=changed_config(network, **fields)))
    assert first_complaint(rows).endswith(stage)


def test_swapped_weights_of_two_layers_are_seen_at_the_first_of_them(errors, weights):
    rows = errors(given=lambda name: weights(swap_layers(name)))
    assert first_complaint(rows) == "prefix_1"


@pytest.mark.parametrize(
    ("starts", "ends", "stage"),
    [
        ("vlm.visual.blocks.1.", ("attn.proj", "mlp.down_proj"), "anchor_vision_1"),
        (LAYER.format(2), ("o_proj", "down_proj"), "prefix_2"),
        ("info_sharing.info_sharing.self_attention_blocks.3.", ("attn.proj", "fc2"), "spatial_3"),
        ("action_head.blocks.2.", ("attn.proj", "fc2"), "denoise_0"),
    ],
)
def test_a_layer_that_is_left_out_is_seen_at_its_place(errors, weights, starts, ends, stage):
    """A layer that adds nothing to what it is given is none."""

    def given(name):
        value = weights(name)
        layer = name.rpartition(".")[0]
        return 0 * value if name.startswith(starts) and layer.endswith(ends) else value

    assert first_complaint(errors(given=given)) == stage


def test_a_denoise_step_that_is_left_out_is_seen(errors, monkeypatch):
    step = models.anchorvla4d.engines.ddim_step
    left_out = models.networks.scale_dp.ddim_coefficients(demo().head)[4]

    def all_but_one(x, epsilon, row, *leftover):
        return x if torch.equal(row, left_out) else step(x, epsilon, row, *leftover)

    monkeypatch.setattr(models.anchorvla4d.engines, "ddim_step", all_but_one)
    assert first_complaint(errors()) == "denoise_4"


def test_a_suffix_that_starts_at_the_wrong_position_is_seen(errors, monkeypatch):
    positions = models.split.mrope_positions
    monkeypatch.setattr(
        models.split,
        "mrope_positions",
        lambda *arguments: (positions(*arguments)[0], positions(*arguments)[1] + 1),
    )
    assert first_complaint(errors()) == "suffix_0"


def test_streamed_and_resident_libraries_put_out_the_same_bits(subject, weights, golden, heard):
    model = on_meta(demo())
    model.load_state_dict({name: weights(name) for name in weights.names}, assign=True)
    resident = Composition(model, subject.tokenizer, image_of(demo()))
    key, checkpoint = str(golden["embodiment"]), subject.checkpoint(model)
    to_policy, _ = normalizations(demo(), checkpoint.statistics[key], key)
    wanted = resident.act(
        anchor=golden["anchor"],
        frame=golden["frame"],
        instruction=str(golden["instruction"]),
        state=to_policy.to_policy(golden["state"]),
        noise=golden["noise"],
    )
    assert np.array_equal(heard[0].kept["x"][-1].numpy(), wanted)


def test_no_more_than_one_piece_of_a_layer_is_held():
    """Counted by the tensors themselves: what was given and is alive."""
    drawn, alive, peak = RandomWeights(demo(), kept=()), {}, 0
    net = on_meta(demo()).vlm.visual
    names = {name: f"vlm.visual.{name}" for name in net.state_dict()}

    def give(name):
        nonlocal peak
        array = drawn(name).numpy().copy()
        alive[name] = array.nbytes
        weakref.finalize(array, alive.pop, name)
        peak = max(peak, sum(alive.values()))
        return torch.from_numpy(array)

    stream(net, give, names)
    resident = sum(alive.values())
    piece = 4 * sum(p.numel() for p in net.blocks[0].mlp.parameters())
    with torch.no_grad():
        net(torch.zeros(16, net.config.patch_dim), (4, 4))
    assert sum(alive.values()) == resident
    assert resident < peak <= resident + piece
    assert 3 * piece < 4 * sum(p.numel() for p in net.parameters()) - resident
    assert all(p.is_meta for p in net.blocks.parameters())


def test_a_layer_lets_go_of_its_weights_when_it_fails():
    net = nn.ModuleList([nn.Sequential(nn.Linear(2, 2, device="meta"))])
    holder = nn.Module()
    holder.layers = net
    names = {name: name for name in holder.state_dict()}
    stream(holder, lambda name: torch.ones(2, 2) if "weight" in name else torch.ones(2), names)
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        holder.layers[0](torch.ones(1, 3))
    assert holder.layers[0][0].weight.is_meta


def test_outliers_stand_in_the_norms_and_the_rest_is_as_drawn_elsewhere():
    plain, planted = (RandomWeights(demo(), outlier_channels=n) for n in (0, 4))
    for name in ("vlm.model.layers.1.input_layernorm.weight", "vlm.visual.blocks.0.norm2.weight"):
        gain = planted(name) / plain(name)
        assert (gain > 20 * gain.median()).sum() == 4
        assert torch.allclose(gain.square().mean(), torch.tensor(1.0), atol=1e-5)
    for name in (TABLE, "vlm.model.norm.weight", "action_head.blocks.0.mlp.fc1.weight"):
        assert torch.equal(planted(name), plain(name))
    assert not torch.equal(plain(TABLE), RandomWeights(demo(), seed=1)(TABLE))


def test_float32_becomes_float64_within_and_bfloat16_stays():
    x = torch.ones(3, dtype=torch.float64) / 3
    with Float64():
        assert torch.equal(x.float(), x)
        assert torch.equal(x.to(torch.float32), x)
        assert torch.softmax(x, 0, dtype=torch.float32).dtype == torch.float64
        assert torch.zeros(2, dtype=torch.float32).dtype == torch.float64
        assert x.bfloat16().dtype == torch.bfloat16
    assert x.float().dtype == torch.float32


@pytest.mark.parametrize(
    ("error", "of_ours", "words"),
    [
        (9e-5, 1e-6, ""),
        (1.1e-4, 1e-6, "1.10e-04 from the libraries, allowed are 1e-04"),
        (float("nan"), 1e-6, "nan from the libraries"),
        (9e-5, 4e-6, "4.00e-06 from float64, where the libraries are 1.00e-06 from it and 3.00e-0"),
        (9e-5, float("inf"), "inf from float64"),
    ],
)
def test_a_complaint_says_how_far_and_what_is_allowed(error, of_ours, words):
    row = StageErrors(stage="prefix_0", error=error, of_libraries=1e-6, of_ours=of_ours)
    assert row.complaint.startswith(words) and bool(row.complaint) == bool(words)


def test_the_command_writes_what_it_measured(monkeypatch, tmp_path, capsys, errors):
    """With ticks that ran already: the others run them too."""
    rows = errors()
    parts = dataclasses.make_dataclass("Parts", ["slots", "fixed"])(
        112, {"prefix": 101, "suffix": 80}
    )
    monkeypatch.setattr(depth, "measure", lambda *_: (rows, parts))
    line = ["depth", "--config", "demo", "--results", str(tmp_path)]
    assert export.__main__.main(line) == 0
    told = json.loads((tmp_path / DEPTH).read_text())
    assert [row["stage"] for row in told["stages"]] == [row.stage for row in rows]
    assert told["peak_gb"] > 0.1 and told["machine"]["commit"]
    table = render_depth(tmp_path)
    assert f"| **actions** | 1 | {rows[-1].error:.1e} |" in table
    assert table.strip() in capsys.readouterr().out

    rows[3] = dataclasses.replace(rows[3], error=2 * LIMIT)
    assert export.__main__.main(line) == 1
    assert capsys.readouterr().err == (
        f"error: {rows[3].stage}: 2.00e-04 from the libraries, allowed are 1e-04\n"
    )
    monkeypatch.setattr(depth, "PEAK_LIMIT", 1e6)
    assert export.__main__.main(line) == 1
    assert capsys.readouterr().err.endswith("allowed are 1e-04 (and 1 more)\n")


def test_by_default_it_measures_the_published_depths():
    assert DepthConfig().config == "full"
    c = full()
    depths = c.vision.depth, c.language.num_hidden_layers, c.spatial.depth, c.head.depth
    assert depths == (32, 36, 24, 24)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"config": "wheels"}, r"unknown configuration 'wheels'; there are \['demo', "),
        ({"layers_per_stage": 0}, "layers_per_stage must be positive, got 0"),
        ({"image_size": (0, 4)}, r"image_size must be positive, got \(0, 4\)"),
    ],
)
def test_a_wrong_argument_is_refused(fields, words):
    with pytest.raises(ValueError, match=words):
        DepthConfig(**fields)
