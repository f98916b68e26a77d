"""QwenGR00T on Qwen3-VL, cameras to actions; its configuration, and what its networks multiply."""

import dataclasses
import json
from collections import Counter

import numpy as np
import pytest
import torch
from torch import nn

from models.anchorvla4d.presets import demo
from models.fields import parse
from models.networks.config import FlowDiTConfig
from models.networks.engines import language_engines, vision_engines
from models.networks.work import Tokens, all_layers, language_work, vision_work
from models.policy_config import NormalizationConfig
from models.processor import read_image_config
from models.qwengr00t.config import QwenGR00TConfig
from models.qwengr00t.family import prompt
from models.qwengr00t.model import QwenGR00T
from models.qwengr00t.reference import Composition
from models.random_weights import random_tensors
from models.split import GraphBuilder
from runtime.image import grid_of
from runtime.prompt import encode_tail
from tests.oracles import END_TO_END, patches_of, relative_error
from tests.qwen3 import CONFIGS, IMAGE, frozen, small, wide

HEAD = FlowDiTConfig(
    num_layers=4, num_heads=4, head_dim=8, action_dim=7, action_horizon=8, state_dim=5,
    hidden_size=24, output_dim=20, num_future_tokens=6, max_seq_len=40,
)  # fmt: skip
VISION, LANGUAGE = small()


def config_of(backbone, views=("frame",)):
    return QwenGR00TConfig(
        vision=backbone[0],
        language=backbone[1],
        head=HEAD,
        normalization=NormalizationConfig(
            action=("q99",) * 7, state=(), action_units=("m",) * 7, state_units=()
        ),
        views=views,
    )


@pytest.fixture(scope="module")
def policies(tokenizer):
    """Of a backbone and a number of views, with the composition that shares its weights."""
    made = {}

    def of(name, num_views):
        key = name, num_views
        if key not in made:
            with torch.device("meta"):
                model = QwenGR00T(config_of(CONFIGS[name](), tuple("abc"[:num_views])))
            model.load_state_dict(dict(random_tensors(model, 0)), assign=True)
            made[key] = frozen(model), Composition(model, tokenizer, IMAGE)
        return made[key]

    return of


def observed(views, size, seed=0):
    random = np.random.default_rng(seed)
    seen = {name: random.integers(0, 256, (*size, 3), np.uint8) for name in views}
    return seen | {"instruction": "push the puck", "noise": random.standard_normal((8, 7), "f4")}


@torch.no_grad()
def act(model, tokenizer, seen):
    parts = prompt(model.config, tokenizer)
    pictures = [seen[name] for name in model.config.views]
    return model(
        [patches_of(picture, IMAGE) for picture in pictures],
        grid_of(*pictures[0].shape[:2], IMAGE),
        parts,
        encode_tail(tokenizer, parts.tail, parts.end_ids, seen["instruction"]),
        torch.from_numpy(seen["noise"]),
    ).numpy()


@pytest.mark.parametrize(
    ("name", "num_views", "size", "padding"),
    [
        ("small", 1, (112, 112), 0),
        ("small", 1, (96, 224), 0),
        ("small", 3, (200, 120), 0),
        ("small", 3, (112, 112), 11),
        ("wide", 1, (224, 160), 0),
    ],
)
@torch.no_grad()
def test_actions_equal_those_of_the_libraries(policies, tokenizer, name, num_views, size, padding):
    ours, oracle = policies(name, num_views)
    seen = observed(ours.config.views, size)
    want = oracle(*oracle.prepare(**seen, padding=padding)).numpy()
    assert relative_error(act(ours, tokenizer, seen), want) <= END_TO_END


def test_names_are_those_that_are_published():
    with torch.device("meta"):
        names = set(QwenGR00T(config_of(small())).state_dict())
    assert names >= {
        "vlm.visual.patch_embed.proj.bias",
        "vlm.visual.pos_embed.weight",
        "vlm.visual.blocks.3.attn.qkv.bias",
        "vlm.visual.blocks.0.mlp.linear_fc1.weight",
        "vlm.visual.merger.norm.bias",
        "vlm.visual.deepstack_merger_list.1.linear_fc2.weight",
        "vlm.model.layers.3.self_attn.q_norm.weight",
        "vlm.model.layers.0.self_attn.o_proj.weight",
    }
    assert not any(name.endswith("_proj.bias") for name in names if "vlm.model" in name)


def test_the_published_model_has_its_number_of_parameters():
    """Qwen3-VL-4B: 4.44 B with its table, which is the LM head's too."""
    vision, language = wide()
    vision = dataclasses.replace(vision, depth=24, deepstack_visual_indexes=(5, 11, 17))
    language = dataclasses.replace(language, num_hidden_layers=36, vocab_size=151936)
    with torch.device("meta"):
        model = QwenGR00T(config_of((vision, language))).vlm
    assert sum(p.numel() for p in model.parameters()) == 4437815808


def as_json(config):
    return json.loads(json.dumps(dataclasses.asdict(config)))


@pytest.mark.parametrize("backbone", [small(), wide(), (demo().vision, demo().language)])
def test_a_configuration_of_either_backbone_survives_its_file(backbone):
    config = config_of(backbone)
    read = parse(QwenGR00TConfig, as_json(config), "")
    assert read == config
    assert type(read.vision) is type(backbone[0]) and type(read.language) is type(backbone[1])


def test_what_is_written_of_qwen2_5_has_no_new_field():
    assert list(as_json(demo())["language"]) == [
        "num_hidden_layers", "hidden_size", "intermediate_size", "num_attention_heads",
        "num_key_value_heads", "vocab_size", "rope_theta", "mrope_section", "rms_norm_eps",
    ]  # fmt: skip
    assert list(as_json(demo())["vision"]) == [
        "depth", "hidden_size", "intermediate_size", "num_heads", "out_hidden_size",
        "fullatt_block_indexes", "patch_size", "temporal_patch_size", "spatial_merge_size",
        "window_size",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda c: c["vision"].pop("depth"), r"missing fields \['vision.depth'\]"),
        (lambda c: c["vision"].update(deph=1), r"unknown fields \['vision.deph'\]"),
        (lambda c: c["vision"].update(window_size=1), r"unknown fields \['vision.window_size'\]"),
        (lambda c: c.update(vision=3), "vision must be an object, got int"),
        (lambda c: c["language"].update(head_dim="8"), "language.head_dim must be int, got '8'"),
        (
            lambda c: c["language"].pop("head_dim"),
            "language.num_attention_heads=6 must divide language.hidden_size=80",
        ),
    ],
)
def test_a_file_that_does_not_fit_is_refused_by_the_field(change, words):
    raw = as_json(config_of(small()))
    change(raw)
    with pytest.raises(ValueError, match=words):
        parse(QwenGR00TConfig, raw, "")


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"num_heads": 3}, "vision.num_heads=3 must divide vision.hidden_size=64"),
        ({"num_heads": 32}, "vision head width must be a multiple of 4.*got 64/32"),
        ({"num_position_embeddings": 50}, "square of a whole number, got 50"),
        ({"num_position_embeddings": 0}, "vision.num_position_embeddings must be from 1"),
        ({"deepstack_visual_indexes": (0, 4)}, r"must lie in \[0, 4\), got \(0, 4\)"),
        ({"deepstack_visual_indexes": (2, 0)}, r"indexes must rise, got \(2, 0\)"),
        ({"deepstack_visual_indexes": (1, 1)}, r"indexes must rise, got \(1, 1\)"),
        ({"depth": 0}, "vision.depth must be from 1"),
    ],
)
def test_a_tower_that_cannot_be_built_is_refused(fields, words):
    with pytest.raises(ValueError, match=words):
        dataclasses.replace(VISION, **fields)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"num_key_value_heads": 4}, "num_key_value_heads=4 must divide"),
        ({"mrope_section": (4, 4, 3)}, r"half the head width 12, got \(4, 4, 3\)"),
        ({"mrope_section": (2, 5, 5)}, r"at most a third of half the head width 12, got \(2, 5"),
        ({"mrope_section": (3, 4, 5)}, r"at most a third of half the head width 12, got \(3, 4"),
        ({"rms_norm_eps": 1.0}, "rms_norm_eps must be below 1"),
        ({"hidden_size": 0}, "language.hidden_size must be from 1"),
    ],
)
def test_a_decoder_that_cannot_be_built_is_refused(fields, words):
    with pytest.raises(ValueError, match=words):
        dataclasses.replace(LANGUAGE, **fields)


@pytest.mark.parametrize(
    ("backbone", "words"),
    [
        ((VISION, demo().language), "goes with a Qwen3LanguageConfig, got a LanguageConfig: lang"),
        ((demo().vision, LANGUAGE), "a LanguageConfig, got a Qwen3LanguageConfig: language.head_d"),
        ((VISION, wide()[1]), "out_hidden_size=80 must equal language.hidden_size=2560"),
        (
            (VISION, dataclasses.replace(LANGUAGE, num_hidden_layers=1)),
            "has 2 levels for language.num_hidden_layers=1; each takes a layer",
        ),
    ],
)
def test_networks_that_do_not_belong_together_are_refused(backbone, words):
    with pytest.raises(ValueError, match=words):
        config_of(backbone)


def test_settings_of_qwen3_vl_s_image_processor_are_read(tmp_path):
    """As published beside Qwen3-VL-4B."""
    raw = {
        "size": {"longest_edge": 16777216, "shortest_edge": 65536},
        "patch_size": 16,
        "temporal_patch_size": 2,
        "merge_size": 2,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
        "processor_class": "Qwen3VLProcessor",
        "image_processor_type": "Qwen2VLImageProcessorFast",
    }
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(raw))
    read = read_image_config(tmp_path / "preprocessor_config.json")
    assert read == dataclasses.replace(IMAGE, min_pixels=65536, max_pixels=16777216)


@pytest.mark.parametrize("per_part", [None, 1])
def test_a_graph_has_the_levels_of_an_image_beside_its_tokens(qwen3, per_part):
    engines = vision_engines(qwen3("small").ours.visual, (6, 8), per_part)
    build = GraphBuilder(engines, IMAGE, (6, 8))
    build.image("frame")
    made = {tensor for stage in build.stages for tensor in stage.outputs.values()}
    for name in ("frame_tokens", "frame_deepstack_0", "frame_deepstack_1"):
        assert name in made and build.tensors[name].shape == (12, 80)


def works_of(vision, language, grid=(6, 8), slots=16, per_part=None):
    """Of each engine."""
    step = per_part or 100

    def cut(depth):
        return [range(i, min(i + step, depth)) for i in range(0, depth, step)]

    seen = [vision_work("vlm.visual", vision, part, grid) for part in cut(vision.depth)]
    read = [
        language_work("vlm.model", language, part, Tokens.padded(slots))
        for part in cut(language.num_hidden_layers)
    ]
    return [*seen, *read]


@pytest.mark.parametrize("name", CONFIGS)
def test_layers_are_those_of_the_modules_with_all_their_weights(name):
    vision, language = CONFIGS[name]()
    with torch.device("meta"):
        model = QwenGR00T(config_of((vision, language)))
    found = all_layers(works_of(vision, language))
    shapes = {
        n: (m.in_features, m.out_features, m.bias is not None)
        for n, m in model.named_modules()
        if isinstance(m, nn.Linear) and n.startswith("vlm.")
    }
    patch = model.vlm.visual.patch_embed.proj
    shapes["vlm.visual.patch_embed.proj"] = (patch.weight[0].numel(), patch.out_channels, True)
    assert {n: (x.num_inputs, x.num_outputs, x.has_bias) for n, x in found.items()} == shapes
    # Both tables are looked up before; of one there are 6 x 8 interpolated rows.
    tables = (model.vlm.model.embed_tokens, model.vlm.visual.pos_embed)
    want = sum(p.numel() for p in model.vlm.parameters())
    want += 6 * 8 * vision.hidden_size - sum(t.weight.numel() for t in tables)
    for per_part in (None, 1, 3):
        works = works_of(vision, language, per_part=per_part)
        assert sum(work.parameters for work in works) == want


def rows_of(spec, names):
    """Of every linear layer of a module that a hook sees: vectors that it multiplied."""
    rows = Counter()

    def watch(module, x):
        rows.update({names[id(module)]: x[0].numel() // x[0].shape[-1]})

    watched = [module for module in spec.module.modules() if id(module) in names]
    handles = [module.register_forward_pre_hook(watch) for module in watched]
    with torch.no_grad():
        spec.module(*(torch.zeros(port.shape) for port in spec.inputs.values()))
    for handle in handles:
        handle.remove()
    return dict(rows)


@pytest.mark.parametrize("per_part", [None, 1, 3])
def test_engines_multiply_as_many_vectors_as_their_modules_do(qwen3, per_part):
    pair = qwen3("small")
    specs = [
        *vision_engines(pair.ours.visual, (6, 8), per_part).values(),
        *language_engines(pair.ours.model, 16, per_part).values(),
    ]
    names = {id(m): f"vlm.{n}" for n, m in pair.ours.named_modules() if isinstance(m, nn.Linear)}
    works = works_of(pair.vision, pair.language, per_part=per_part)
    for work, spec in zip(works, specs, strict=True):
        unseen = "vlm.visual.patch_embed.proj"  # multiplied by its weight alone
        counted = {x.name: x.rows for x in work.layers if x.name != unseen}
        assert counted == rows_of(spec, names)


def test_a_decoder_layer_multiplies_what_the_published_dimensions_say():
    """32 heads of 128 on a width of 2560; 8 keys and values; 112 new tokens see 224."""
    work = language_work("vlm.model", wide()[1], range(1), Tokens.padded(112))
    products = 2 * 2560 * 4096 + 2 * 2560 * 1024 + 3 * 2560 * 9728
    assert work.flops == 2 * 112 * products + 2 * 2 * 32 * 112 * 224 * 128
    assert work.parameters == products + 2 * 2560 + 2 * 128


def test_a_vision_block_attends_over_the_whole_image():
    work = vision_work("vlm.visual", wide()[0], range(1, 2), (18, 14))
    assert work.attention_flops == 2 * 2 * 16 * 64 * (18 * 14) ** 2
    assert work.largest_scores == 16 * (18 * 14) ** 2
