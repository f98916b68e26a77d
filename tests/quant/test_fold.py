"""Factors belong to tensors: every reader shares one, and folding them changes no output."""

import copy

import modelopt.torch.quantization as modelopt
import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from torch import nn

from models.anchorvla4d.model import AnchorVLA4D
from models.anchorvla4d.presets import CONFIGS
from models.checkpoint import load_checkpoint
from models.demo import CHECKPOINT
from models.families import CONFIGS as ALL
from models.families import family_of
from models.init import image_of
from models.stored import plain
from quant.apply import linear_layers, quantize
from quant.calibrate import Statistics, calibrate
from quant.fold import fold, smooth_factor
from quant.modules import QuantLinear
from quant.recipes import KEPT, Recipe, Rule
from quant.sites import find_sites
from tests.oracles import random_policy, relative_error
from tests.quant.test_methods import modelopts

SMOOTH = Rule("*", "w8a8", "smooth")
READERS = {"q": 64, "k": 16, "v": 16}


@pytest.mark.parametrize("name", CONFIGS)
def test_every_linear_layer_reads_at_one_site(name):
    with torch.device("meta"):
        model = AnchorVLA4D(CONFIGS[name]())
    readers = [reader for site in find_sites(model) for reader in site.readers]
    assert sorted(readers) == sorted(linear_layers(model))


def tiny_policies():
    """Of every family the smallest."""
    return [name for name in ALL if name.endswith(("tiny", "tiny3", "tiny-tokens"))]


@pytest.mark.parametrize("name", tiny_policies())
def test_folding_changes_no_action_of_any_family(name):
    """And where a family's sites have writers, it changes their weights."""
    config = ALL[name]()
    family = family_of(config)
    model = random_policy(config)
    readers = [reader for site in find_sites(model) for reader in site.readers]
    assert sorted(readers) == sorted(linear_layers(model))
    folded = fold(model, rules_of(model), made_up_statistics(model)).model
    tokenizer = Tokenizer.from_file(str(CHECKPOINT / "tokenizer.json"))
    parts, image = family.prompt(config, tokenizer), image_of(config)
    random = np.random.default_rng(0)
    inputs = family.inputs(config, parts, (112, 112, 3), 64)
    seen = {
        given: random.integers(0, 256, i.shape, np.uint8)
        if i.dtype == "uint8"
        else random.uniform(-1, 1, i.shape).astype(np.float32)
        for given, i in inputs.items()
        if i.kind in ("image", "depth", "vector", "noise") and i.source != "memory"
    }
    ids = parts.tail_ids(tokenizer, "reach")
    want, got = (family.actions(m, parts, image, ids, seen) for m in (model, folded))
    assert relative_error(got, want) <= 1e-4
    after = folded.state_dict()
    moved = [n for n, p in model.state_dict().items() if not torch.equal(p, after[n])]
    assert any("norm" in n for n in moved)


@pytest.fixture(scope="module")
def policy(cut_checkpoint):
    return load_checkpoint(cut_checkpoint).model


def networks(model, seed=0, embed=None):
    """What each network makes of random inputs; of the head, modulations and denoising.

    Args:
        embed: [D, D] what embeddings are multiplied with first.
    """
    random = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=random)

    config, head = model.config, model.action_head
    language = config.language
    angles = normal(12, language.head_dim)
    embeddings = normal(12, language.hidden_size)
    embeddings = embeddings if embed is None else embeddings @ embed
    patches = normal(2, 64, config.vision.patch_dim)
    chunk = normal(config.head.prediction_horizon, config.head.action_dim)
    with torch.no_grad():
        return {
            "vision": model.vlm.visual(patches[0], (8, 8)),
            "language": model.vlm.model(
                embeddings,
                model.vlm.model.empty_past(0),
                torch.full((12, 12), -1e9).triu(1),
                angles.cos(),
                angles.sin(),
            )[1],
            "spatial": model.info_sharing(patches[0], patches[1]),
            "head": head.epsilon(chunk, torch.tensor(3), normal(config.head.n_emb)),
        }


def made_up_statistics(model, seed=1):
    """Channels differ by three decades, so every factor matters; alike for all readers."""
    random = np.random.default_rng(seed)
    found = {}
    for site in find_sites(model):
        width = linear_layers(model)[site.readers[0]].in_features
        largest = np.exp(random.uniform(-4, 3, width)).astype(np.float32)
        rows = random.uniform(-1, 1, (5, width)).astype(np.float32) * largest
        found |= dict.fromkeys(site.readers, Statistics(largest, rows, 5))
    return found


def rules_of(model):
    return dict.fromkeys(linear_layers(model), SMOOTH)


@pytest.fixture(scope="module")
def folded(policy):
    return fold(policy, rules_of(policy), made_up_statistics(policy))


def test_folding_changes_no_output_of_any_network(policy, folded):
    """Each product rounds K terms of other size: some sqrt(K) 2^-24, and a dozen layers of it."""
    want, got = networks(policy), networks(folded.model)
    errors = {name: relative_error(got[name], want[name]) for name in want}
    assert max(errors.values()) < 2e-5, errors


@pytest.mark.parametrize("network", ["vision", "language", "spatial", "head"])
def test_every_folded_weight_matters(policy, folded, network):
    """One writer left as it was moves its network by more than all folding does."""
    prefixes = dict(
        vision="vlm.visual.", language="vlm.model.", spatial="info_sharing.", head="action_head."
    )
    want = networks(policy)[network]
    writers = {
        writer.module
        for site in find_sites(policy)
        for writer in site.writers
        if writer.module.startswith(prefixes[network])
    }
    assert len(writers) >= 2
    for name in writers:
        broken = plain(folded.model)
        broken.get_submodule(name).weight.copy_(policy.get_submodule(name).weight)
        error = relative_error(networks(broken)[network], want)
        assert error > 1e-4, f"{name}: {error:.1e}"


def test_what_is_said_to_flow_is_what_flows(policy):
    """Statistics of the folded policy, against those of a calibration of it."""
    runs = [lambda seed=seed: networks(model, seed) for seed in (3, 4)]
    model = policy
    seen = calibrate(policy, runs)
    for name in linear_layers(policy).keys() - seen.keys():
        width = linear_layers(policy)[name].in_features
        seen[name] = Statistics(np.ones(width, np.float32), np.ones((1, width), np.float32), 1)
    made = fold(policy, rules_of(policy), seen)
    model = made.model
    for name, want in calibrate(model, runs).items():
        said = made.statistics[name]
        assert np.allclose(said.channel_max, want.channel_max, rtol=1e-3), name
        assert relative_error(said.rows, want.rows) < 1e-3, name


def test_layers_that_share_an_input_share_factor_and_step(policy):
    rules = (*KEPT, SMOOTH)
    recipe = Recipe(name="t", rules=rules, target="orin", purpose="time", chain_tolerance=1)
    model = quantize(policy, recipe, made_up_statistics(policy))
    for site in find_sites(policy):
        layers = [model.get_submodule(name) for name in site.readers]
        layers = [layer for layer in layers if isinstance(layer, QuantLinear)]
        assert len({float(layer.activation_scale) for layer in layers}) <= 1, site
        for layer in layers:
            assert (layer.input_factor is None) == bool(site.writers), site
        if len(layers) > 1 and not site.writers:
            assert all(layer.input_factor.equal(layers[0].input_factor) for layer in layers)


def test_the_factor_of_several_layers_is_modelopts_of_them_joined():
    """SmoothQuant of one layer that holds all their outputs; up to the number that centres it."""
    random = np.random.default_rng(5)
    weights = {
        name: random.standard_normal((width, 48), np.float32) * np.float32(spread)
        for (name, width), spread in zip(READERS.items(), (0.1, 1.0, 5.0), strict=True)
    }
    rows = random.standard_normal((40, 48), np.float32) * np.exp(random.standard_normal(48)).astype(
        np.float32
    )
    config = copy.deepcopy(modelopt.INT8_SMOOTHQUANT_CFG)
    config["algorithm"] = {"method": "smoothquant", "alpha": 0.5}
    joined = np.concatenate(list(weights.values())).T.copy()
    theirs, _ = modelopts(config, rows, joined)
    ours = smooth_factor([torch.from_numpy(w) for w in weights.values()], np.abs(rows).max(axis=0))
    ratio = np.asarray(theirs) * ours
    assert np.allclose(ratio / ratio[0], 1, rtol=1e-4)


def test_copies_of_a_channel_have_one_factor_by_the_largest_of_each():
    channels = np.array([0, 1, 0, 1])
    weight = torch.tensor([[1.0, 2.0, 4.0, 0.5]])
    got = smooth_factor([weight], np.array([9.0, 1.0, 3.0, 8.0], np.float32), channels)
    scales = np.sqrt([9.0 / 4.0, 8.0 / 2.0])
    want = np.sqrt(scales.prod()) / scales
    assert np.allclose(got, want[channels])


def test_heads_that_share_values_share_their_factors(folded, policy):
    config = policy.config.language
    (site,) = (
        s for s in find_sites(policy) if s.readers == ("vlm.model.layers.0.self_attn.o_proj",)
    )
    groups = config.num_attention_heads // config.num_key_value_heads
    by_head = site.channels.reshape(config.num_key_value_heads, groups, config.head_dim)
    assert groups > 1 and (by_head == by_head[:, :1]).all()
    assert len(np.unique(site.channels)) == config.num_key_value_heads * config.head_dim


def test_what_is_not_smoothed_is_shared_with_the_policy(policy):
    rules = rules_of(policy) | {
        name: Rule("*", "float") for name in linear_layers(policy) if "mlp" not in name
    }
    made = fold(policy, rules, made_up_statistics(policy)).model
    before, after = dict(policy.named_parameters()), dict(made.named_parameters())
    changed = {name for name in before if before[name] is not after[name]}
    assert "vlm.model.layers.0.post_attention_layernorm.weight" in changed
    assert not [name for name in changed if "self_attn" in name or "input_layernorm" in name]
    nothing = dict.fromkeys(linear_layers(policy), Rule("*", "float"))
    kept = fold(policy, nothing, {}).model
    assert all(p is before[name] for name, p in kept.named_parameters())


def test_a_layer_that_stays_float_beside_smoothed_ones_is_compensated(policy, folded):
    rules = rules_of(policy)
    rules["vlm.model.layers.0.self_attn.k_proj"] = Rule("*", "float")
    made = fold(policy, rules, made_up_statistics(policy)).model
    want, got = networks(policy)["language"], networks(made)["language"]
    assert relative_error(got, want) < 2e-5
    assert isinstance(made.vlm.model.layers[0].self_attn.k_proj, nn.Linear)
