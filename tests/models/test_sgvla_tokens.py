"""SG-VLA with discrete tokens, beside greedy `generate` of transformers' Qwen2ForCausalLM.

A token that is chosen is a matter of order: two correct implementations agree unless the scores of
the two likeliest tokens are closer than their rounding. In float32 scores are 1e-6 off, by
`MODULE` 1e-5 at most, and here the two likeliest are `MARGIN` apart and more, both as parts of the
largest score. So all tokens have to agree, and actions are rows of one table.
"""

import dataclasses
import json

import numpy as np
import onnx
import pytest
import torch

from export.engines.counts import count
from export.engines.onnx_file import write_onnx
from export.measure import Modules, golden_of, made_up
from models.checkpoint import Checkpoint
from models.demo import CHECKPOINT
from models.families import CONFIGS, family_of, read_config, to_json
from models.family import layer_names
from models.init import image_of, statistics_of
from models.networks.token_head import TokenHead
from models.networks.token_head_config import TokenHeadConfig
from models.networks.work import Tokens
from models.random_weights import random_tensors
from models.sgvla.family import prompt
from models.sgvla.model import SGVLA, predict
from models.sgvla.token_reference import TokenComposition
from quant.apply import decide
from quant.recipes import RECIPES
from quant.sites import find_sites
from runtime.backends.onnxruntime_module import ort
from tests.oracles import END_TO_END, MODULE, relative_error
from tests.test_command_lines import call

TINY = CONFIGS["sgvla-tiny-tokens"]()
SIZE, SLOTS = (112, 112), 100
MARGIN = 1e-4
QUIET = 0.03
"""By which tokens of numbers are scaled down: drawn like all others, each would foretell itself,
and a chunk be one token again and again."""


def of_head(**changes):
    return dataclasses.replace(TINY, head=dataclasses.replace(TINY.head, **changes))


POLICIES = {
    "two actions of five": TINY,
    "one action, other tokens": of_head(action_horizon=1, num_bins=128, end_id=400),
    "five actions, one camera": dataclasses.replace(
        of_head(action_horizon=5), views=("head",), depth_views=("head_depth",)
    ),
}


@pytest.fixture(scope="module")
def policies(tokenizer):
    made = {}

    def of(name):
        if name not in made:
            config = POLICIES[name]
            with torch.device("meta"):
                model = SGVLA(config)
            model.load_state_dict(dict(random_tensors(model, 0)), assign=True)
            ours = model.eval().requires_grad_(False)
            ids = config.head.ids(config.language)
            ours.decoder.embed_tokens.weight[ids.start : ids.stop] *= QUIET
            made[name] = ours, TokenComposition(ours, tokenizer, image_of(config))
        return made[name]

    return of


@pytest.fixture(scope="module")
def checkpoint(policies, tokenizer):
    return Checkpoint(
        CHECKPOINT, TINY, policies("two actions of five")[0], tokenizer, image_of(TINY),
        statistics_of(TINY), "",
    )  # fmt: skip


@pytest.fixture(scope="module")
def parts(checkpoint):
    return family_of(TINY).split(
        checkpoint.model, checkpoint.parts, checkpoint.image, SIZE, SLOTS, {"language": 1}
    )


def observed(config, seed=0, size=(120, 160)):
    random = np.random.default_rng(seed)
    seen = {name: random.integers(0, 256, (*size, 3), np.uint8) for name in config.views}
    for name in config.depth_views:
        seen[name] = random.uniform(0.2, 4, size).astype(np.float32)
    return seen


def act(model, tokenizer, instruction, seen):
    parts = prompt(model.config, tokenizer)
    tail = parts.tail_ids(tokenizer, instruction)
    return predict(model, parts, image_of(model.config), tail, seen).actions_TA


@pytest.mark.parametrize("name", POLICIES)
@torch.no_grad()
def test_every_token_is_the_one_that_the_library_generates(policies, tokenizer, name):
    ours, oracle = policies(name)
    for seed, instruction in enumerate(("reach", "Push the PUCK", "open the drawer, then close")):
        seen = observed(ours.config, seed)
        got = act(ours, tokenizer, instruction, seen)
        given = oracle.prepare(instruction=instruction, **seen)
        made = oracle.generate(*given)
        ids = list(oracle.numbers.ids)
        scores = torch.cat(made.logits)[:, ids]
        first, second = scores.topk(2).values.T
        assert float((first - second).min() / scores.abs().max()) > MARGIN
        want = oracle.numbers(made.sequences[0])
        assert want.shape == ours.config.chunk and torch.equal(got, want)
        assert len(set(made.sequences[0].tolist())) > 1, "the order of tokens would not show"


def test_numbers_are_those_of_openvla_s_bins():
    """By hand, of 256 edges: ids fall from the end on, and the lowest one is cut off to the last
    bin but none."""
    middles = TokenHead(TokenHeadConfig(action_dim=7)).centres()
    edges = np.linspace(-1, 1, 256)
    for counted, number in ((1, 0), (2, 1), (129, 128), (255, 254), (256, 254)):
        want = np.float32((edges[number] + edges[number + 1]) / 2)
        assert middles[256 - counted] == want
    assert middles.shape == (256,) and float(middles[0]) == -float(middles[255])


@torch.no_grad()
def test_every_tensor_is_what_the_library_puts_out(parts, checkpoint, policies, tokenizer):
    """Of a prompt that is read in parts of one layer, in calls that are mostly padding."""
    golden = golden_of(checkpoint, made_up(checkpoint, SIZE), seed=1)
    ours = Modules(checkpoint, parts).tensors(golden)
    _, library = policies("two actions of five")
    kept = library.listen()
    seen = {n: golden[n] for n in TINY.pictures}
    given = library.prepare(instruction=str(golden["instruction"]), **seen)
    library(*given)
    want = library.placed(kept, (4, 4), {"language": 1}, parts.fixed)
    assert {name for name in want if not name.startswith("predicted")} >= {
        *parts.graph.engine_outputs
    }
    for name, expected in want.items():
        if not name.startswith("predicted"):
            there = ours[name][tuple(map(slice, expected.shape))]
            limit = MODULE if name.startswith("logits") else END_TO_END
            assert relative_error(there, expected.numpy()) <= limit, name


def test_a_new_instruction_redoes_the_text_and_the_tokens_alone(parts):
    """And a picture its own call, those behind it and the tokens; nothing is drawn."""
    needs, stages = parts.graph.stage_dependencies, parts.graph.stages
    assert set(parts.graph.inputs) == {*TINY.pictures, "instruction"}
    heard = {s.name for s in stages if s.engine and "instruction" in needs[s.name]}
    suffix = {s.name for s in stages if s.engine and s.name.startswith("suffix")}
    steps = {f"next_token_{k}" for k in range(9)}
    assert heard == suffix | steps | {"first_token", "chunk"}
    for name in heard:
        assert needs[name] == {*TINY.pictures, "instruction"}, name
    assert needs["read_hand_2"] == {"head", "hand"}


def test_a_token_sees_those_before_it_and_no_row_of_the_future(parts, checkpoint):
    """The window of a call ends where its own row is written, and shows as many as there are."""
    ours = Modules(checkpoint, parts).tensors(
        golden_of(checkpoint, made_up(checkpoint, SIZE), seed=1)
    )
    for k in range(9):
        start = parts.graph.extent(f"tokens_{k}")
        own = parts.graph.extent(f"token_{k}_kv")
        assert start[0] == own[0] and start[2] == own[1]
        row = ours[f"seen_{k}"][:9]
        assert (row == 0).sum() == k and not row[9 - k :].any() and (row[: 9 - k] < -1e4).all()


@torch.no_grad()
def test_files_put_out_what_their_modules_do_and_hold_what_is_counted(
    checkpoint, policies, tmp_path
):
    parts = family_of(TINY).split(checkpoint.model, checkpoint.parts, checkpoint.image, SIZE, SLOTS)
    works = family_of(TINY).engines_work(TINY, (4, 4), Tokens.padded(SLOTS, 5))
    assert list(works) == list(parts.engines)
    tensors = Modules(checkpoint, parts).tensors(
        golden_of(checkpoint, made_up(checkpoint, SIZE), seed=2)
    )
    for engine in ("first_token", "next_token", "chunk"):
        spec = parts.engines[engine]
        stage = [s for s in parts.graph.stages if s.engine == engine][-1]
        given = {port: tensors[name] for port, name in stage.inputs.items()}
        path = write_onnx(spec, tmp_path / f"{engine}.onnx", opset=18).path
        found = count(path)
        assert found.by_weights + found.attention_flops == works[engine].flops, engine
        got = ort.InferenceSession(path).run(None, given)
        for port, value in zip(spec.outputs, got, strict=True):
            assert relative_error(value, tensors[stage.outputs[port]]) <= MODULE, (engine, port)
        held = {node.op_type for node in onnx.load(path, load_external_data=False).graph.node}
        assert ("ArgMax" in held) == (engine != "first_token")
    assert works["next_token"].calls == 9


def test_a_forecast_charges_every_token_with_the_decoder_s_weights(capsys, tmp_path):
    """24 layers of 896: 14.9 M weights each, in int8, and 12 times behind the first token."""
    words = ("--config", "sgvla-fetch-tokens", "--board", "agx-orin-64gb", "--out", str(tmp_path))
    assert call("export", ["forecast", *words]) == 0
    stages = json.loads(capsys.readouterr().out.splitlines()[-1])["stages"]
    weights = 24 * (2 * 896**2 + 2 * 896 * 128 + 3 * 896 * 4864)
    assert stages["next_token"]["calls"] == 12
    assert weights <= stages["next_token"]["weight_bytes"] / 12 <= 1.01 * weights
    assert stages["chunk"]["flops"] == 0 and list(tmp_path.iterdir())


def test_chunks_of_a_tick_would_all_be_the_same(checkpoint):
    family = family_of(TINY)
    with pytest.raises(ValueError, match="--samples 2: this policy draws nothing"):
        family.split(checkpoint.model, checkpoint.parts, checkpoint.image, SIZE, SLOTS, samples=2)
    with pytest.raises(ValueError, match="--samples 3: this policy draws nothing"):
        family.inputs(TINY, checkpoint.parts, (*SIZE, 3), 8, samples=3)


def test_every_recipe_decides_about_its_layers_and_values_may_take_a_factor(checkpoint):
    """No expert reads the decoder's values. `orin-mixed` is another policy's."""
    for name, recipe in RECIPES.items():
        if name == "orin-mixed":
            continue
        decide(recipe().fitted(layer_names(TINY)), checkpoint.model)
        assert not [n for n in layer_names(TINY) if n.startswith("action_head")], name
    read = {reader: site for site in find_sites(checkpoint.model) for reader in site.readers}
    for index in range(3):
        layer = f"language_model.model.layers.{index}.self_attn"
        assert read[f"{layer}.o_proj"].writers[0].module == f"{layer}.v_proj"


def test_a_configuration_is_written_and_read(tmp_path):
    for name in ("sgvla-tiny", "sgvla-tiny-tokens", "sgvla-fetch-tokens"):
        config = CONFIGS[name]()
        (tmp_path / name).write_text(to_json(config))
        assert read_config(tmp_path / name) == config
    assert json.loads((tmp_path / "sgvla-fetch-tokens").read_text())["head"] == {
        "action_dim": 13, "action_horizon": 1, "num_bins": 256, "end_id": None
    }  # fmt: skip
    assert CONFIGS["sgvla-fetch-tokens"]().head.num_tokens == 13


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"num_bins": 100}, "head.num_bins must be a multiple of 64"),
        ({"num_bins": 0}, "head.num_bins must be from 1"),
        ({"end_id": 200}, "rows of a table of language.vocab_size=512"),
        ({"end_id": 600}, "rows of a table of language.vocab_size=512"),
        ({"action_dim": 1, "action_horizon": 1}, "must be at least 2, got 1"),
        ({"action_dim": 4}, "normalization.action has 5 modes"),
    ],
)
def test_a_head_that_does_not_fit_is_refused(changes, said):
    with pytest.raises(ValueError, match=said):
        of_head(**changes)
