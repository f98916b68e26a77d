"""Folders of UP-VLA: what is written is read back, what the authors' modules hold is known, and
whatever does not fit is refused by name."""

import dataclasses
import os
import re
import shutil

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import save_file
from tokenizers import Tokenizer, models

from models.checkpoint import load_checkpoint, open_checkpoint, reference
from models.errors import CheckpointError
from models.families import CONFIGS, family_of
from models.init import image_of
from models.random_weights import random_weights
from models.upvla.presets import calvin, thin
from tests.models.showo_folders import (
    BIN,
    CONFIG,
    MADE,
    MODEL,
    PHI,
    ROLLOUT,
    SEED,
    VQ,
    edit_tensors,
    model_shapes,
    read,
    synthesized,
    vq_shapes,
    write_sparse,
)
from tests.models.synthesized import POINTER, command, edit_json


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Folders by configuration, made once; not to be changed."""
    base, kept = tmp_path_factory.mktemp("folders"), {}

    def folder(name="tiny"):
        if name not in kept:
            kept[name] = synthesized(base, name)
        return kept[name]

    return folder


@pytest.fixture
def folder(written, tmp_path):
    """One of one's own to change."""
    return shutil.copytree(written(), tmp_path / "folder")


def plain(config):
    return dataclasses.replace(config, description="", license="")


def drawn(name="tiny"):
    return random_weights(MADE[name](), SEED, outlier_channels=2, dtype=torch.bfloat16)


def same(opened, name="tiny"):
    want = drawn(name)
    assert opened.weights.keys() == want.keys()
    return all(torch.equal(opened.weights[n].read(), want[n].read()) for n in want)


@pytest.mark.parametrize("name", MADE)
def test_a_folder_comes_back_bit_for_bit(written, name):
    opened, config = open_checkpoint(written(name)), MADE[name]()
    assert plain(opened.config) == plain(config) and same(opened, name)
    assert opened.image == image_of(config) and opened.config.license == calvin().license
    assert {s.dtype for s in opened.weights.values()} == {torch.bfloat16}
    files = [file.relative_to(written(name)).as_posix() for file in opened.weights.files]
    assert files == [f"{VQ}/{BIN}", f"{MODEL}/{BIN}"]


def test_its_actions_are_those_of_the_weights_that_it_was_written_from(written):
    """In robot units: nothing is normalized."""
    checkpoint = load_checkpoint(written("other"))
    config = MADE["other"]()
    family = family_of(config)
    model = family.model(config)
    model.load_state_dict({name: s.read().float() for name, s in drawn("other").items()})
    random = np.random.default_rng(0)
    seen = {view: random.integers(0, 256, (50, 70, 3), np.uint8) for view in config.views}
    got = reference(checkpoint, instruction="push it", **seen)
    tail = checkpoint.tail_ids("push it")
    want = family.actions(model, checkpoint.parts, image_of(config), tail, seen)
    assert np.array_equal(got, want) and got.shape == (4, 7) and np.ptp(got) > 0.1
    said = checkpoint.tokenizer.encode("push it", add_special_tokens=False).ids
    assert (checkpoint.parts.before, tail) == (((435, 424),), (*said, 424))


def test_what_is_written_is_what_the_authors_modules_hold(written):
    """Names and shapes of their state_dict, which they load strictly; what of it is not read."""
    held = torch.load(written() / MODEL / BIN, weights_only=True)
    sizes = {"vocabulary": 457, "width": 64, "inner": 128, "layers": 3, "heads": 4, "outputs": 21}
    assert {name: tuple(value.shape) for name, value in held.items()} == model_shapes(**sizes)
    pictures = torch.load(written() / VQ / BIN, weights_only=True)
    powers, bits = pictures["quantize.power_vals"], pictures["quantize.embedding"]
    assert powers.dtype == torch.int64 and powers.tolist() == [8, 4, 2, 1]
    assert torch.equal(((bits > 0) * powers).sum(1), torch.arange(16)) and bits.abs().min() == 1
    opened = open_checkpoint(written())
    unused = {u.name: u.why for u in opened.weights.unused}
    chat = {f"mm_projector.{n}.{of}" for n in (0, 2) for of in ("weight", "bias")}
    assert unused.keys() == chat | {"quantize.embedding", "quantize.power_vals"}
    assert {unused[name] for name in chat} == {
        "brings pictures of CLIP to the chat, of which this policy does nothing"
    }
    assert "counted and not looked up" in unused["quantize.power_vals"]


def test_of_the_head_over_the_vocabulary_the_rows_of_codes_are_read(written):
    weights = open_checkpoint(written()).weights
    held = torch.load(written() / MODEL / BIN, weights_only=True)
    for kind in ("weight", "bias"):
        name = f"showo.lm_head.{kind}"
        assert torch.equal(weights[name].read(), held[name][440:456])
        assert weights[name].how == "rows 440 to 455, the codes'"
        assert held[name].flatten().unique().numel() > 16 and held[name][456].abs().max() > 0


def phi_tokenizer(path):
    """As many tokens as Phi-1.5's tokenizer has: GPT-2's, and 38 of white space."""
    words = {f"t{number}": number for number in range(50256)} | {"<|endoftext|>": 50256}
    made = Tokenizer(models.BPE(vocab=words, merges=[]))
    made.add_tokens([" " * number for number in range(2, 40)])
    made.save(str(path))


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """The published sizes and nothing that is not needed; config.json of Show-o's own."""
    folder = tmp_path_factory.mktemp("published")
    for name in (MODEL, VQ, PHI):
        (folder / name).mkdir()
    write_sparse(folder / MODEL / "pytorch_model.safetensors", model_shapes())
    write_sparse(folder / VQ / "pytorch_model.safetensors", vq_shapes())
    phi_tokenizer(folder / PHI / "tokenizer.json")
    settings = {"_class_name": "Showo", "codebook_size": 8192, "llm_vocab_size": 50295}
    settings |= {"num_vq_tokens": 1024, "vocab_size": 58498, "w_clip_vit": True}
    (folder / MODEL / CONFIG).write_text(str(settings).replace("'", '"').replace("True", "true"))
    return folder


def test_the_published_sizes_are_those_of_the_preset(published, capsys):
    opened = open_checkpoint(published)
    assert plain(opened.config) == plain(calvin())
    assert opened.weights["showo.lm_head.weight"].read().shape == (8192, 2048)
    assert command("config", "--check", published) == 0
    said = capsys.readouterr().out
    for line in (
        "policy: UP-VLA, on Show-o", "weights: unwrapped_model/pytorch_model.safetensors, magvit",
        "pictures: 512 x 512 pixels, 1024 codes each", "views: frame\n", "10 x 7: 7 identity",
        "rows of codes, 50305 to 58496, are read", "no upvla_model.yaml beside the weights: 1 view",
        "partial_rotary_factor, rope_theta, layer_norm_eps: not stated, Phi-1.5's", "sound\n",
    ):  # fmt: skip
        assert line in said


def test_without_a_folder_of_its_own_the_model_is_read_too(folder):
    for name in (CONFIG, BIN):
        (folder / MODEL / name).rename(folder / name)
    (folder / MODEL).rmdir()
    (folder / "metadata.json").write_text("{}")
    assert same(open_checkpoint(folder))


def test_files_of_safetensors_are_read_as_those_of_torch(folder):
    for name in (MODEL, VQ):
        state = torch.load(folder / name / BIN, weights_only=True)
        save_file(state, folder / name / "pytorch_model.safetensors", {"format": "pt"})
        (folder / name / BIN).unlink()
    opened = open_checkpoint(folder)
    assert same(opened) and len(opened.weights.unused) == 6


def test_what_the_chat_and_the_code_book_need_need_not_be_there(folder):
    edit_tensors(folder / VQ / BIN, lambda s: {n: s[n] for n in s if "quantize" not in n})
    edit_tensors(folder / MODEL / BIN, lambda s: {n: s[n] for n in s if "mm_proj" not in n})
    (folder / VQ / CONFIG).unlink()
    opened = open_checkpoint(folder)
    assert same(opened) and not opened.weights.unused


def stated(file, **change):
    return lambda folder: edit_json(folder / file, lambda raw: raw.update(change))


def rolled(*place, value):
    def edit(folder):
        raw = yaml.safe_load((folder / ROLLOUT).read_text())
        inside = raw
        for name in place[:-1]:
            inside = inside[name]
        inside[place[-1]] = value
        (folder / ROLLOUT).write_text(yaml.safe_dump(raw))

    return edit


def held(where, **change):
    """Tensors given, or taken away by None; `__` stands for a dot."""

    def edit(folder):
        def inside(state):
            for name, value in change.items():
                name = name.replace("__", ".")
                state.pop(name, None)
                if value is not None:
                    state[name] = value
            return state

        edit_tensors(folder / where / BIN, inside)

    return edit


def without(*names):
    def edit(folder):
        for name in names:
            (folder / name).unlink()

    return edit


def text(name, words):
    return lambda folder: (folder / name).write_text(words)


def every(where, change):
    return lambda folder: edit_tensors(folder / where / BIN, change)


def of_five_bits(state):
    """Codes of five bits, where the rest knows four."""
    state["encoder.quant_conv.weight"] = torch.zeros(5, 5, 1, 1)
    return state


OWN, TEXT, WORDS = f"{MODEL}/{CONFIG}", f"{PHI}/{CONFIG}", f"{PHI}/tokenizer.json"
ONE = torch.zeros(1)
PRE, SHOWO = ("dataset", "preprocessing"), ("model", "showo")
REFUSED = [
    (stated(OWN, _class_name="Llava"), "_class_name='Llava' is not honoured, only"),
    (stated(f"{VQ}/{CONFIG}", _class_name="VQModel"), "magvitv2/config.json: _class_name='VQModel"),
    (stated(OWN, codebook_size=8192), "codebook_size=8192, and the weights say 16"),
    (stated(OWN, vocab_size=458), "vocab_size=458, and the weights say 457"),
    (stated(OWN, llm_vocab_size=431), "llm_vocab_size=431, and the weights say 430"),
    (stated(OWN, act_step=10), "act_step=10, and the weights say 3"),
    (stated(OWN, num_vq_tokens=50), "num_vq_tokens=50 codes .* are no square"),
    (stated(OWN, num_vq_tokens=16), "num_vq_tokens=64, and config.json says 16"),
    (stated(OWN, num_vq_tokens="64"), "num_vq_tokens must be a whole number from 1"),
    (stated(OWN, act_step=True), "act_step must be a whole number from 1, got True"),
    (rolled(*PRE, "resolution", value=512), "resolution=512, and 64 codes of 2 x 2 pixels make 16"),
    (rolled(*PRE, "max_seq_length", value=0), "max_seq_length must be a whole number from 1, got"),
    (rolled("model", "vla", "num_view", value=3), "num_view=3 is not here, only 1 or 2"),
    (rolled("model", "vla", value=[1]), r"model.vla must hold settings, got \[1\]"),
    (rolled("model", "vq_model", "type", value="vqgan"), "type='vqgan' is not honoured, only 'mag"),
    (rolled(*SHOWO, "num_new_special_tokens", value=9), "=9, and the authors' code adds 10"),
    (rolled(*SHOWO, "codebook_size", value=32), "yaml: codebook_size=32, and the weights say 16"),
    (rolled("act_step", value=5), "upvla_model.yaml: act_step=5, and the weights say 3"),
    (stated(TEXT, model_type="llama"), "model_type='llama' is not honoured, only 'phi'"),
    (stated(TEXT, hidden_act="gelu"), "hidden_act='gelu' is not honoured, only 'gelu_n"),
    (stated(TEXT, hidden_size=2048), "hidden_size=2048, and the weights say 64"),
    (stated(TEXT, intermediate_size=1), "intermediate_size=1, and the weights say 128"),
    (stated(TEXT, num_hidden_layers=24), "num_hidden_layers=24, and the weights say 3"),
    (stated(TEXT, num_attention_heads=2), "num_attention_heads=2, and the weights sa"),
    (stated(TEXT, rope_theta="1e4"), "rope_theta must be a number above zero, got '1e4'"),
    (stated(TEXT, layer_norm_eps=0), "layer_norm_eps must be a number above zero, got 0"),
    (stated(TEXT, rope_scaling={"type": "linear", "factor": 2.0}), "of type 'linear'"),
    (without(f"{PHI}/{CONFIG}"), "must state partial_rotary_factor, rope_theta, layer_norm_eps, s"),
    (without(WORDS), "tokenizer.json: missing; copy it from microsoft/phi-1_5"),
    (without(f"{MODEL}/{CONFIG}"), "missing; copy that of showlab/show-o-w-clip-vit-512x512, whos"),
    (without(f"{MODEL}/{BIN}"), "neither pytorch_model.bin nor .*; copy it from CladernyJorn/UP-V"),
    (without(f"{VQ}/{BIN}"), "magvitv2: neither .* in it; copy it from showlab/magvitv2"),
    (text(f"{VQ}/pytorch_model.safetensors", ""), "holds pytorch_model.bin and .*; remove one of"),
    (text("policy.json", "{}"), "policy.json: beside weights of UP-VLA's own layout, .*; remove i"),
    (text(WORDS, "{}"), "phi-1_5/tokenizer.json: not a tokenizer"),
    (text(WORDS, POINTER), "tokenizer.json: a git-lfs pointer"),
    (text(f"{VQ}/{BIN}", POINTER), f"{BIN}: a git-lfs pointer, not weights"),
    (text(ROLLOUT, "a: &x [1]\nb: *x\n"), "upvla_model.yaml: an alias in line 2; write out what "),
    (every(MODEL, lambda s: {f"module.{n}": s[n] for n in s}), "names wrapped by torch's Distribu"),
    (every(MODEL, lambda s: {n: s[n] for n in s if "token_l" not in n}), "holds no token_learner."),
    (every(MODEL, lambda s: {n: s[n] for n in s if "k_layern" not in n and "q_layern" not in n}),
     "a Phi without norms of queries and keys, as Microsoft's own is; Show-o's has them"),
    (every(MODEL, lambda s: {"model": s}), "holds no token_learner"),
    (every(VQ, of_five_bits), "codebook_size=16, and the weights say 32"),
    (held(MODEL, to_logits__0__weight=torch.zeros(20, 64)), "20 rows, which are no actions of 7"),
    (held(VQ, encoder__down__0__block__0__conv1__weight=torch.zeros(48, 32, 3, 3)),
     "encoder.down.0.block.0.conv1.weight has 48 channels, no multiple of 32"),
    (held(MODEL, showo__model__layers__0__self_attn__q_layernorm__weight=torch.zeros(48)),
     "q_layernorm.weight has 48 numbers, which must divide the width 64"),
    (held(MODEL, showo__model__embed_tokens__weight=torch.zeros(27, 64)),
     "27 rows of tokens: too few for 16 codes of pictures, 10 tokens that Show-o adds, and a mask"),
    (text(WORDS, Tokenizer(models.BPE(vocab={"a": 0}, merges=[])).to_str()),
     "has no token '<.endoftext.>'; take that of microsoft/phi-1_5"),
    (held(MODEL, note="words"), "note is no tensor but a str; it must be a dictionary of tensors"),
    (held(MODEL, vision_tower__x=ONE), "extra tensors: vision_tower.x"),
    (held(VQ, encoder__down__0__attn__0__q__weight=ONE), "extra tensors: encoder.down.0.attn.0.q."),
    (held(MODEL, showo__model__final_layernorm__bias=None, token_learner__latents=None),
     "missing tensors: showo.model.final_layernorm.bias, token_learner.latents"),
    (held(VQ, decoder__conv_out__bias=ONE), r"decoder.conv_out.bias \[1\], expected \[3\]"),
    (held(MODEL, showo__lm_head__bias=ONE), r"showo.lm_head.bias \[1\], expected \[457\]"),
    (held(MODEL, mm_projector__0__bias=ONE), r"mm_projector.0.bias \[1\], expected \[64\]"),
    (held(VQ, quantize__embedding=torch.zeros(8, 4)), r"quantize.embedding \[8, 4\], expected \[1"),
    (held(MODEL, to_logits__0__bias=torch.zeros(21).long()), "to_logits.0.bias int64"),
]  # fmt: skip


@pytest.mark.parametrize(("edit", "words"), REFUSED, ids=[words[:40] for _, words in REFUSED])
def test_what_does_not_fit_is_refused_by_name(folder, edit, words):
    edit(folder)
    with pytest.raises(CheckpointError, match=words) as error:
        open_checkpoint(folder)
    assert str(folder) in str(error.value)


def test_no_number_of_codes_is_guessed(folder):
    edit_json(folder / MODEL / CONFIG, lambda raw: raw.pop("num_vq_tokens"))
    assert same(open_checkpoint(folder))  # the rollout's settings say it too
    (folder / ROLLOUT).unlink()
    with pytest.raises(CheckpointError, match="num_vq_tokens is missing, and says how many codes"):
        open_checkpoint(folder)


def test_another_tokenizer_is_refused(folder, published):
    """Ids of the prompt follow those of the language model's own."""
    shutil.copyfile(published / PHI / "tokenizer.json", folder / PHI / "tokenizer.json")
    with pytest.raises(CheckpointError, match="has 50295 tokens, and in the weights .* behind 430"):
        open_checkpoint(folder)


class Hostile:
    def __reduce__(self):
        return os.mkdir, ("run",)


def test_no_code_of_a_file_is_run(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    edit_tensors(folder / MODEL / BIN, lambda state: {**state, "to_logits.0.bias": Hostile()})
    with pytest.raises(CheckpointError, match="can be read without running its code"):
        open_checkpoint(folder)
    assert not (tmp_path / "run").exists()


def test_synthesize_replaces_what_it_wrote_and_nothing_else(folder, capsys):
    line = ("synthesize", "--family", "upvla", "--config", "tiny", "--out", folder)
    before = open_checkpoint(folder).weights["to_logits.0.bias"].read()
    assert command(*line, "--seed", 8) == 0
    assert not torch.equal(open_checkpoint(folder).weights["to_logits.0.bias"].read(), before)
    (folder / VQ / "notes.txt").write_text("mine")
    assert command(*line) != 0
    assert "magvitv2/notes.txt is not of this command" in capsys.readouterr().err
    (folder / VQ / "notes.txt").unlink()
    edit_json(folder / MODEL / CONFIG, lambda raw: raw.update(_name_or_path="UP-VLA-Calvin"))
    assert command(*line) != 0 and "no synthesized weights" in capsys.readouterr().err


def prompt(**change):
    return lambda c: {"prompt": dataclasses.replace(c.prompt, **change)}


@pytest.mark.parametrize(
    ("change", "words", "said"),
    [
        ({}, ("--layout", "prismatic"), "a upvla is written as --layout showo only"),
        ({}, ("--names", "newer"), "--names, --weights and --settings belong to no --layout showo"),
        (lambda c: {"prompt": calvin().prompt, "language": calvin().language,
                    "vision": calvin().vision, "head": calvin().head}, (),
         "has 430 tokens and <.endoftext.> at 424, the prompt of this policy stands on 50295 and"),
        (prompt(action=431), (), "prompt=.* cannot be said in a folder of --layout showo"),
        (prompt(text_slots=40), (), "prompt=.*text_slots=40.* cannot be said"),
        (lambda c: {"language": dataclasses.replace(c.language, vocab_size=458)}, (),
         "language.vocab_size=458 cannot be said"),
        (lambda c: {"head": dataclasses.replace(c.head, num_heads=4)}, (), "head.num_heads=4 cann"),
        (lambda c: {"views": ("wrist",)}, (), "views=.'wrist',. cannot be said"),
        (lambda c: {"normalization": dataclasses.replace(c.normalization, action_units=("m",) * 7)},
         (), "normalization=.* cannot be said"),
    ],
)  # fmt: skip
def test_what_such_a_folder_cannot_say_is_not_written(
    tmp_path, monkeypatch, capsys, change, words, said
):
    config = MADE["tiny"]()
    made = dataclasses.replace(config, **change(config)) if callable(change) else config
    monkeypatch.setitem(CONFIGS, "other", lambda: made)
    assert command("synthesize", "--config", "other", *words, "--out", tmp_path / "out") == 2
    found = capsys.readouterr().err
    assert re.search(said, " ".join(found.split())), found
    assert not (tmp_path / "out").exists()


@pytest.mark.full
def test_published_widths_come_back(tmp_path):
    assert (
        command("synthesize", "--family", "upvla", "--config", "thin", "--out", tmp_path / "a") == 0
    )
    assert plain(open_checkpoint(tmp_path / "a").config) == plain(thin())


def test_settings_are_those_of_the_authors(written):
    """Of config.json as diffusers registers it, and of upvla_model.yaml."""
    raw = read(written("other") / MODEL / CONFIG)
    assert raw["_class_name"] == "Upvla" and raw["act_step"] == 4 and raw["mask_token_id"] == 472
    assert (raw["vocab_size"], raw["llm_vocab_size"], raw["num_vq_tokens"]) == (473, 430, 16)
    rollout = yaml.safe_load((written("other") / ROLLOUT).read_text())
    assert rollout["model"]["vla"] == {"num_view": 2}
    assert rollout["dataset"]["preprocessing"] == {"max_seq_length": 49, "resolution": 16}
