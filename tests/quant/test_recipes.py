"""What every shipped recipe says, layer by layer; and recipes that cannot be are refused."""

import functools
import json
import re
from dataclasses import replace

import pytest
import torch
from torch import nn

from models.anchorvla4d.model import AnchorVLA4D
from models.anchorvla4d.presets import CONFIGS
from models.families import CONFIGS as ALL
from models.families import family_of
from models.networks.layers import RMSNorm
from quant.apply import FLOAT_KINDS, decide, quantize
from quant.recipes import KEPT, METHODS, MIXED, RECIPES, Recipe, Rule, orin_mixed, read_recipe

# fmt: off
TABLE = """
layer of the policy, any block       cpu      bf16     fp16     w8a8     w4a16    mixed    thor
vlm.visual.patch_embed.proj          float    float    float    float    float    float    float
vlm.visual.blocks.*.attn.qkv         smooth   float    float    tokens   tokens   tokens   fp8
vlm.visual.blocks.*.attn.proj        smooth   float    float    tokens   tokens   tokens   fp8
vlm.visual.blocks.*.mlp.gate_proj    smooth   float    float    tokens   tokens   tokens   fp8
vlm.visual.blocks.*.mlp.up_proj      smooth   float    float    tokens   tokens   tokens   fp8
vlm.visual.blocks.*.mlp.down_proj    tokens   float    float    tokens   tokens   tokens   fp8
vlm.visual.merger.mlp.0              smooth   float    float    tokens   tokens   float    fp8
vlm.visual.merger.mlp.2              smooth   float    float    tokens   tokens   float    fp8
vlm.model.layers.*.self_attn.q_proj  smooth   float    float    tokens   gptq     tokens   fp8
vlm.model.layers.*.self_attn.k_proj  smooth   float    float    tokens   gptq     tokens   fp8
vlm.model.layers.*.self_attn.v_proj  smooth   float    float    tokens   gptq     tokens   fp8
vlm.model.layers.*.self_attn.o_proj  tokens   float    float    tokens   gptq     tokens   fp8
vlm.model.layers.*.mlp.gate_proj     smooth   float    float    tokens   gptq     tokens   fp8
vlm.model.layers.*.mlp.up_proj       smooth   float    float    tokens   gptq     tokens   fp8
vlm.model.layers.*.mlp.down_proj     tokens   float    float    tokens   gptq     tokens   fp8
info_sharing.*.proj_embed            float32  float    float    float    float    float    fp8
info_sharing.*.blocks.*.attn.qkv     smooth   float    float    tokens   tokens   float    fp8
info_sharing.*.blocks.*.attn.proj    smooth   float    float    tokens   tokens   float    fp8
info_sharing.*.blocks.*.mlp.fc1      smooth   float    float    tokens   tokens   tokens   fp8
info_sharing.*.blocks.*.mlp.fc2      smooth   float    float    tokens   tokens   tokens   fp8
info_sharing.final_projection        float32  float32  float32  float32  float32  float32  float32
action_head.state_linear             float32  float32  float32  float32  float32  float32  float32
action_head.combine.0                float32  float    float    float    float    float    float
action_head.combine.2                float32  float    float    float    float    float    float
action_head.combine.4                float32  float    float    float    float    float    float
action_head.cond_obs_emb             float32  float    float    float    float    float    float
action_head.t_embedder.mlp.0         float32  float32  float32  float32  float32  float32  float32
action_head.t_embedder.mlp.2         float32  float32  float32  float32  float32  float32  float32
action_head.x_embedder               float32  float32  float32  float32  float32  float32  float32
action_head.blocks.*.attn.qkv        smooth   float    float    tokens   gptq     tokens   float
action_head.blocks.*.attn.proj       smooth   float    float    tokens   gptq     tokens   float
action_head.blocks.*.mlp.fc1         smooth   float    float    tokens   gptq     tokens   float
action_head.blocks.*.mlp.fc2         smooth   float    float    tokens   gptq     tokens   float
action_head.blocks.*.adaLN_mod*.1    float32  float    float    float    tokens   float    float
action_head.final_layer.adaLN_mod*.1 float32  float    float    float    tokens   float    float
action_head.final_layer.linear       float32  float32  float32  float32  float32  float32  float32
readouts.*                           float32  float32  float32  float32  float32  float32  float32

base                                 float32  bfloat16 float16  bfloat16 bfloat16 bfloat16 bfloat16
target                               cpu      orin     orin     orin     orin     orin     thor
purpose                              time     accuracy accuracy time     memory   time     time
tolerance                            0.005    0.0001   0.0001   0.005    0.005    0.005    0.0001
chain_tolerance                      0.02     0.05     0.02     0.05     0.05     0.05     0.05
stage_error                          25.0     0.0      0.0      25.0     80.0     25.0     25.0
success_margin                       0.05     0.05     0.05     0.05     0.05     0.05     0.05
"""
"""smooth and tokens are methods of w8a8, gptq and awq of w4; all else is a format, plain."""
# fmt: on
_LAYERS, _FIELDS = (part.splitlines() for part in TABLE.strip().split("\n\n"))
ALIASES = dict(cpu="cpu-int8", bf16="orin-bf16", fp16="orin-fp16-safe", thor="thor-fp8")
COLUMNS = [ALIASES.get(alias, f"orin-{alias}") for alias in _LAYERS[0].split()[-7:]]
STATIC, UNPROVED = "orin-w8a8-static", "orin-w8-weight-only-unproved"
SHORT = {
    **{("w8a8", "smooth"): "smooth", ("w4", "gptq"): "gptq", ("w4", "awq"): "awq"},
    ("w8a8", "tokens"): "tokens",
    **{(form, "plain"): form for form in ("float32", "float", "w8", "fp8")},
}


@functools.cache
def empty_policy(name="demo"):
    with torch.device("meta"):
        return AnchorVLA4D(CONFIGS[name]())


def kind(layer):
    """A layer's name as the table has it."""
    layer = re.sub(r"\.(blocks|layers|self_attention_blocks)\.\d+\.", r".\1.*.", layer)
    layer = layer.replace("info_sharing.info_sharing.", "info_sharing.*.")
    if layer.startswith("readouts."):
        return "readouts.*"
    return layer.replace(".self_attention_", ".").replace("adaLN_modulation", "adaLN_mod*")


@pytest.mark.parametrize("recipe", COLUMNS)
def test_every_layer_has_the_format_that_the_table_says(recipe):
    want = {}
    for line in _LAYERS[1:]:
        layer, *cells = line.split()
        want[layer] = cells[COLUMNS.index(recipe)]
    assert len(want) == 37 and any(make().readouts for make in CONFIGS.values())
    for config, make in CONFIGS.items():
        found = {} if make().readouts else {"readouts.*": {want["readouts.*"]}}
        for layer, rule in decide(RECIPES[recipe](), empty_policy(config)).items():
            found.setdefault(kind(layer), set()).add(SHORT[rule.format, rule.method])
        assert found == {layer: {form} for layer, form in want.items()}


@pytest.mark.parametrize("recipe", COLUMNS)
def test_every_recipe_is_judged_as_the_table_says(recipe):
    chosen = RECIPES[recipe]()
    assert chosen.name == recipe
    for line in _FIELDS:
        field, *cells = line.split()
        assert str(getattr(chosen, field)) == cells[COLUMNS.index(recipe)], field
    assert chosen.is_quantized


def test_the_float32_recipe_leaves_everything_as_it_is():
    chosen = RECIPES["float32"]()
    assert set(RECIPES) == {"float32", STATIC, UNPROVED, *COLUMNS}
    rules = decide(chosen, empty_policy()).values()
    assert {(rule.format, rule.method) for rule in rules} == {("float32", "plain")}
    assert (chosen.name, chosen.base, chosen.target) == ("float32", "float32", "cpu")
    assert chosen.purpose == "accuracy"
    assert (chosen.tolerance, chosen.chain_tolerance, chosen.stage_error) == (1e-4, 1e-4, 0.0)
    assert not chosen.is_quantized


def trial(*rules, **fields):
    rules = tuple(Rule(*rule) for rule in rules)
    given = {"name": "trial", "rules": rules, "target": "cpu", "purpose": "time"}
    return Recipe(**{**given, "chain_tolerance": 1, **fields})


@pytest.mark.parametrize(
    ("rules", "base", "quantized"),
    [
        ([("*", "float32")], "float32", False),
        ([("*", "float32")], "bfloat16", True),
        ([("0", "float32"), ("*", "w8")], "float32", True),
        ([("0", "w8"), ("*", "float32")], "float32", True),
    ],
)
def test_a_recipe_is_quantized_if_anything_leaves_float32(rules, base, quantized):
    assert trial(*rules, base=base).is_quantized == quantized


def test_patterns_tell_upper_from_lower_case_and_dots_are_dots():
    chosen = trial(("a.*.W", "w8"), ("*", "float32"))
    found = {n: r.format for n, r in chosen.decide(["a.0.W", "a.0.w", "axW"]).items()}
    assert found == {"a.0.W": "w8", "a.0.w": "float32", "axW": "float32"}


def test_a_rule_of_an_unknown_format_is_refused():
    with pytest.raises(ValueError, match=r"^head: unknown format 'int8', there are \('float32', "):
        Rule("head", "int8")


@pytest.mark.parametrize("number_format", ["float32", "float", "w8", "fp8", "w8a8", "w4"])
def test_a_format_takes_its_own_methods_and_no_other(number_format):
    known = METHODS.get(number_format, ("plain",))
    for method in ("plain", "smooth", "tokens", "outliers", "awq", "gptq"):
        if method in known:
            assert Rule("x", number_format, method).method == method
        else:
            with pytest.raises(ValueError, match=f"^x: format {number_format} knows the methods"):
                Rule("x", number_format, method)


def with_module(module):
    model = nn.Sequential(nn.Linear(4, 4), nn.GELU())
    model.extra = module
    return model


class Table(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("rows", torch.ones(3, 4))


class Owner(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner, self.gain = nn.Linear(4, 4), nn.Parameter(torch.ones(4))


@pytest.mark.parametrize(
    ("module", "words"),
    [
        (nn.BatchNorm1d(4), r"extra is a BatchNorm1d with weights \['weight', 'bias', 'running_m"),
        (nn.Bilinear(4, 4, 4), r"extra is a Bilinear with weights \['weight', 'bias'\]"),
        (nn.GRU(4, 4), r"extra is a GRU with weights \['weight_ih_l0', "),
        (Table(), r"extra is a Table with weights \['rows'\]"),
        (Owner(), r"extra is a Owner with weights \['gain'\]"),
    ],
)
def test_a_module_whose_weights_nobody_speaks_of_is_refused(module, words):
    message = f"^{words}.*nothing says in which precision: make it a layer that recipes name, or"
    with pytest.raises(ValueError, match=message):
        decide(trial(("*", "float32")), with_module(module))


def test_weights_of_the_model_itself_are_spoken_of_too():
    with pytest.raises(ValueError, match=r"^the model is a Owner with weights \['gain'\]"):
        decide(trial(("*", "float32")), Owner())


@pytest.mark.parametrize("module", [RMSNorm(4), nn.LayerNorm(4), nn.Embedding(3, 4)])
def test_norms_and_tables_need_no_rule(module):
    assert list(decide(trial(("*", "w8")), with_module(module))) == ["0"]


def test_every_kind_that_needs_no_rule_is_in_the_policy():
    configs = [make() for name, make in ALL.items() if name == "demo" or "tiny" in name]
    models = [family_of(config).shapes(config) for config in configs]
    assert set(FLOAT_KINDS) <= {type(module) for model in models for module in model.modules()}


@pytest.mark.parametrize("conv", [nn.Conv1d(4, 4, 1), nn.Conv2d(3, 4, 2), nn.Conv3d(3, 4, 2)])
def test_a_convolution_needs_a_rule_and_stays_float(conv):
    model = with_module(conv)
    with pytest.raises(ValueError, match=r"no rule for 1 layers, \['extra'\] first"):
        decide(trial(("0", "w8")), model)
    for form in ("float32", "float"):
        chosen = trial(("extra", form), ("*", "w8"))
        assert decide(chosen, model)["extra"].format == form
        assert quantize(model, chosen, {}).extra is not None
    message = (
        r"^recipe trial: 'e\*' makes extra w8, but it is a convolution, and those stay float: "
    )
    with pytest.raises(ValueError, match=message):
        decide(trial(("e*", "w8"), ("*", "float32")), model)


def test_a_recipe_is_read_from_its_file(tmp_path):
    assert read_recipe(MIXED) == orin_mixed()
    raw = json.loads(MIXED.read_text())
    assert orin_mixed().rules == tuple(Rule(*rule) for rule in raw["recipe"]["rules"])
    kept = {(rule.pattern, rule.format) for rule in KEPT}
    own = kept & {(rule.pattern, rule.format) for rule in orin_mixed().rules}
    assert {("vlm.visual.patch_embed.proj", "float"), ("action_head.x_embedder", "float32")} <= own
    for change in (
        lambda raw: raw["recipe"].pop("rules"),
        lambda raw: raw["recipe"].pop("name"),
        lambda raw: raw["recipe"].update(colour="red"),
        lambda raw: raw["recipe"]["rules"].append(["x", "w5"]),
        lambda raw: raw.pop("recipe"),
    ):
        broken = json.loads(MIXED.read_text())
        change(broken)
        (tmp_path / "recipe.json").write_text(json.dumps(broken))
        with pytest.raises(
            ValueError, match=r"recipe\.json: not a recipe \(.*make sensitivity wri"
        ):
            read_recipe(tmp_path / "recipe.json")
    with pytest.raises(ValueError, match=r"none\.json: not a recipe \(.*No such file"):
        read_recipe(tmp_path / "none.json")


@pytest.mark.parametrize("target", ["orin", "thor"])
def test_a_device_is_asked_for_what_tensorrt_documents_or_the_name_says_that_it_is_not(target):
    """Its guide: int8 and fp8 for weights with inputs, int4 for weights alone."""
    undocumented = [("a", "w8"), ("*", "w8a8")]
    message = "^recipe trial: it has layers in w8, .* TensorRT documents no scheme for"
    with pytest.raises(ValueError, match=message):
        trial(*undocumented, target=target)
    assert trial(*undocumented, target=target, name="trial-unproved").target == target
    assert trial(*undocumented).target == "cpu"
    for documented in ("float32", "float", "w8a8", "w4"):
        assert trial(("*", documented), target=target).rules[0].format == documented


def test_the_static_recipe_has_scales_for_tokens_only_where_tokens_differ_too_much():
    chosen, like = RECIPES[STATIC](), RECIPES["orin-w8a8"]()
    assert chosen.name == STATIC
    assert replace(chosen, name=like.name, rules=like.rules) == like
    own, others = (decide(recipe, empty_policy("full")) for recipe in (chosen, like))
    tokens = {kind(layer) for layer, rule in own.items() if rule.method == "tokens"}
    assert tokens == {
        "vlm.model.layers.*.self_attn.o_proj",
        "vlm.model.layers.*.mlp.down_proj",
        "vlm.visual.blocks.*.mlp.down_proj",
    }
    assert {n: r.format for n, r in own.items()} == {n: r.format for n, r in others.items()}
    assert {rule.method for rule in own.values()} == {"plain", "smooth", "tokens"}


def test_the_unproved_recipe_is_for_memory_and_has_float_inputs_in_attention_and_head():
    chosen = RECIPES[UNPROVED]()
    assert (chosen.name, chosen.target, chosen.purpose) == (UNPROVED, "orin", "memory")
    formats = {}
    for layer, rule in decide(chosen, empty_policy("full")).items():
        if rule not in KEPT:
            formats.setdefault(rule.format, set()).add(kind(layer))
    parts = ("attn", "action_head", "proj_embed")
    assert set(formats) == {"w8", "w8a8"}
    assert all(any(part in layer for part in parts) for layer in formats["w8"])
    assert not any(part in layer for part in parts for layer in formats["w8a8"])


def test_no_shipped_recipe_for_a_device_is_unproved_but_the_one_that_says_so():
    for name, make in RECIPES.items():
        recipe = make()
        formats = {rule.format for rule in recipe.rules}
        assert (recipe.target != "cpu" and "w8" in formats) == name.endswith("-unproved")


def test_a_purpose_is_one_of_three():
    with pytest.raises(
        ValueError, match=r"^recipe trial: unknown purpose 'speed', there are \('ac"
    ):
        trial(("*", "w8"), purpose="speed")


def test_fp8_in_any_rule_wants_a_thor():
    rules = (Rule("a", "w8a8"), Rule("*", "fp8"))
    for target in ("cpu", "orin"):
        with pytest.raises(ValueError, match=f"recipe trial: FP8 needs .*{target} has none"):
            trial(target=target, rules=rules)
    assert replace(trial(), target="thor", rules=rules).rules == rules
