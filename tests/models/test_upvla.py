"""UP-VLA, cameras to actions and to what it foresees, against transformers and torch; its parts."""

import dataclasses

import numpy as np
import pytest
import torch

import runtime
from models.families import CONFIGS
from models.init import image_of
from models.networks.vision_language import patches_of
from models.networks.work import Tokens
from models.upvla.family import prompt, published_prompt
from models.upvla.model import UPVLA, actions
from models.upvla.work import engines_work
from runtime.prompt import attention_mask, mrope_tables
from tests.export.conftest import random_bundle
from tests.oracles import (
    END_TO_END,
    FAINT,
    MODULE,
    beside_libraries,
    normal,
    relative_error,
    with_fields,
)

TINY, THIN = CONFIGS["upvla-tiny"](), CONFIGS["upvla-thin"]()
POLICIES = {
    "one view": TINY,
    "two views": dataclasses.replace(TINY, views=("frame", "wrist")),
    "deeper": dataclasses.replace(
        TINY,
        vision=dataclasses.replace(
            TINY.vision,
            ch_mult=(1, 1, 2),
            num_res_blocks=(1, 2, 1),
            decoder_ch_mult=(2, 1, 1),
            decoder_num_res_blocks=(1, 1, 2),
            image_size=32,
        ),
        language=dataclasses.replace(TINY.language, partial_rotary_factor=1.0),
        head=dataclasses.replace(TINY.head, num_heads=2),
    ),
    "published widths": THIN,
}
INSTRUCTIONS = ("reach", "Push the PUCK", " ".join(3 * ["open the drawer, close it"]))
FLIPS = 1e-3
"""Share of codes that two correct encoders may differ in. A bit is the sign of one number of order
1, whose float32 errors are below MODULE of it: it falls to the other side with a probability of
some 1e-5, and a code of 13 bits is another with one of some 1e-4. Of the few hundred codes of these
tests that is none, so that a single one is looked at."""


@pytest.fixture(scope="module")
def policies(tokenizer):
    return beside_libraries(POLICIES, tokenizer, lambda name: image_of(POLICIES[name]))


def observed(config, seed=0, size=(120, 160)):
    random = np.random.default_rng(seed)
    return {name: random.integers(0, 256, (*size, 3), np.uint8) for name in config.views}


def act(model, tokenizer, instruction, seen):
    parts = prompt(model.config, tokenizer)
    tail = parts.tail_ids(tokenizer, instruction)
    return actions(model, parts, image_of(model.config), tail, seen)


def patches(config, seen):
    return patches_of([seen[view] for view in config.views], image_of(config))[0]


@pytest.mark.parametrize("instruction", INSTRUCTIONS)
@pytest.mark.parametrize("name", POLICIES)
@torch.no_grad()
def test_actions_equal_those_of_the_libraries(policies, tokenizer, name, instruction):
    """The libraries' text is filled up from the left, ours is not."""
    ours, oracle = policies(name)
    seen = observed(ours.config)
    want = oracle(*oracle.prepare(instruction=instruction, **seen)).numpy()
    assert want.shape == ours.config.chunk
    assert relative_error(act(ours, tokenizer, instruction, seen), want) <= END_TO_END


@pytest.mark.parametrize("name", POLICIES)
@torch.no_grad()
def test_codes_agree_with_those_of_torch_s_own_layers(policies, name):
    """What the bits are signs of, number by number; and the codes, by how many agree."""
    ours, oracle = policies(name)
    seen = observed(ours.config, seed=1)
    pixels = oracle.prepare(instruction="reach", **seen).pixel_values
    want = oracle.encoder(pixels)
    agreed, count = 0, 0
    for view, codes, z in zip(patches(ours.config, seen), oracle.codes(pixels), want, strict=True):
        cut = view.reshape(*ours.config.vision.grid, 3, *2 * (ours.config.vision.patch_size,))
        picture = cut.permute(2, 0, 3, 1, 4).reshape(pixels.shape[1:])
        assert relative_error(ours.vq_model.encoder(picture), z) <= MODULE
        agreed, count = agreed + int((ours.codes(view) == codes).sum()), count + len(codes)
    assert 1 - agreed / count <= FLIPS
    assert len(set(oracle.codes(pixels).flatten().tolist())) > 4


@pytest.mark.parametrize("name", POLICIES)
@torch.no_grad()
def test_what_is_foreseen_equals_what_the_libraries_foresee(policies, tokenizer, name):
    """Of the same codes: rows, codes to come, and the pictures of all codes that there are."""
    ours, oracle = policies(name)
    c = ours.config
    prepared = oracle.prepare(instruction="push the puck", **observed(c, seed=2))
    codes = oracle.codes(prepared.pixel_values)
    parts = prompt(c, tokenizer)
    hidden = ours.hidden(list(codes), parts, parts.tail_ids(tokenizer, "push the puck"))
    want = oracle.hidden(codes, prepared.input_ids)
    assert relative_error(hidden, want[0, -len(hidden) :]) <= MODULE
    foreseen = ours.future_codes(want[0])
    assert foreseen.shape == (len(c.views), c.vision.num_patches)
    assert torch.equal(foreseen, oracle.foreseen(want))
    spread = torch.arange(c.vision.num_patches) * 37 % c.vision.codebook_size
    for one in (*foreseen, spread):
        assert relative_error(ours.picture(one), oracle.picture(one)) <= 10 * MODULE
    # 100 times as near to zero, where a wrong epsilon would show.
    z = torch.randn(c.vision.z_channels, *c.vision.grid, generator=torch.Generator().manual_seed(0))
    faint = FAINT * z
    assert relative_error(ours.vq_model.decoder(faint), oracle.decoder(faint[None])[0]) <= (
        10 * MODULE
    )


@torch.no_grad()
def test_a_past_is_what_a_longer_call_would_have_seen(policies):
    """Text rows do not see what is behind them: a call of them alone gives the past of the rest.
    And padding, between the two or behind, changes nothing."""
    decoder = policies("one view")[0].decoder
    c, text, rows, slots = decoder.config, 5, 7, 9
    embedded = normal(text + rows, c.hidden_size)
    places = np.broadcast_to(np.arange(40, 40 + text + rows), (3, text + rows))
    tables = mrope_tables(places, theta=c.rope_theta, sections=c.mrope_section)
    cos, sin = map(torch.from_numpy, tables)
    whole = torch.from_numpy(attention_mask(0, 0, text + rows, text + rows))
    whole[text : text + 4] = 0
    want_kv, want = decoder(embedded, decoder.empty_past(0), whole, cos, sin)

    def padded(part):
        filled = [torch.zeros(slots, x.shape[1]) for x in (embedded, cos, sin)]
        for to, x in zip(filled, (embedded, cos, sin), strict=True):
            to[: part.stop - part.start] = x[part]
        return filled

    def call(part, past, mask):
        x, cos_S, sin_S = padded(part)
        return decoder(x, past, torch.from_numpy(mask), cos_S, sin_S)

    first = attention_mask(0, slots, text, slots)
    kv, _ = call(slice(0, text), decoder.empty_past(slots), first)
    second = attention_mask(text, slots, rows, slots, num_open=4)
    _, hidden = call(slice(text, text + rows), kv, second)
    assert relative_error(kv[:text], want_kv[:text]) <= MODULE
    assert relative_error(hidden[:rows], want[text:]) <= MODULE
    closed = attention_mask(text, slots, rows, slots)
    _, other = call(slice(text, text + rows), kv, closed)
    assert relative_error(other[0], want[text]) > 100 * MODULE, "a first row sees the last ones"


def test_every_input_moves_the_actions(policies, tokenizer):
    """Each corner of each view: a picture has one value there and another elsewhere."""
    ours, _ = policies("two views")
    seen = observed(ours.config, size=(16, 16))
    before = act(ours, tokenizer, "reach", seen)
    for view in ours.config.views:
        for row, column in ((0, 0), (0, 8), (8, 8)):
            moved = {**seen, view: seen[view].copy()}
            moved[view][row : row + 8, column : column + 8] ^= 0xFF
            assert relative_error(act(ours, tokenizer, "reach", moved), before) > END_TO_END
    swapped = dict(zip(seen, reversed(seen.values()), strict=True))
    assert relative_error(act(ours, tokenizer, "reach", swapped), before) > END_TO_END
    assert relative_error(act(ours, tokenizer, "Reach", seen), before) > END_TO_END


def test_the_prompt_is_ids_around_the_instruction(policies, tokenizer):
    ours, _ = policies("one view")
    p, parts = ours.config.prompt, prompt(ours.config, tokenizer)
    said = tokenizer.encode("Push the PUCK", add_special_tokens=False).ids
    assert parts.before == ((p.task, p.bos),)
    assert parts.tail_ids(tokenizer, "  Push the PUCK ") == (*said, p.eos)
    published, tail = published_prompt(CONFIGS["upvla-calvin"]())
    assert published.before == ((50300, 50256),) and published.end_ids == (50256,)
    assert 6 <= tail <= 20


def test_published_sizes_are_those_that_were_counted():
    """Parameters of the authors' own classes; 1024 codes of 13 bits, 1036 rows behind a text."""
    calvin = CONFIGS["upvla-calvin"]()
    with torch.device("meta"):
        model = UPVLA(calvin)
    for part, count in ((model.vq_model.encoder, 55439171), (model.vq_model.decoder, 39947833)):
        assert sum(p.numel() for p in part.parameters()) == count
    encoder = engines_work(calvin, calvin.vision.grid, Tokens(new=1100, seen=1164))["vq_encoder"]
    assert 1.42e12 <= encoder.flops < 1.43e12, "as it was counted on the authors' own encoder"
    assert calvin.vision.codebook_size == 8192 and calvin.vision.num_patches == 1024
    assert calvin.num_rows == 1036
    p = calvin.prompt
    assert p.first_code + 8192 == calvin.language.vocab_size - 1, "the last id is the mask's"


@pytest.fixture(scope="module")
def bundle(shared_folder):
    return random_bundle(shared_folder, "upvla-tiny")


END = ("suffix", "act", "denoised_actions", "actions")
TEXT = ("prefix_text", "prefix_rotary", "prefix_mask", "prefix", "suffix_mask")
REDONE = {"frame": {"frame_patches", "frame_codes", *END}, "instruction": {*TEXT, *END}}
"""As the table of families has it: a picture its codes and the call that reads them; the text both
calls, and no picture."""
FORESEEN = {"future_codes": {"future_codes"}, "future_frame": {"future_frame"}}


@pytest.mark.parametrize("changed", REDONE)
def test_a_new_input_redoes_what_the_table_says_and_no_more(bundle, changed):
    """Neither the head over the codes nor the picture's decoder runs for actions alone."""
    seen = observed(TINY, size=(112, 112))
    with runtime.load(bundle) as policy, policy.start(instruction="reach") as episode:
        episode.act(seen)
        assert not episode.stats.num_runs["future_codes"] + episode.stats.num_runs["future_frame"]
        if changed == "instruction":
            episode.say("push the puck")
        else:
            seen = observed(TINY, seed=1, size=(112, 112))
        episode.act(seen)
        assert set(episode.stats.last_s) == REDONE[changed]
        episode.act(seen)
        assert not episode.stats.last_s
        assert not episode.stats.num_runs["future_codes"] + episode.stats.num_runs["future_frame"]


def test_what_is_foreseen_is_made_when_somebody_asks(bundle, policies, tokenizer):
    """It is what the float32 reference foresees; and it is new once a picture is."""
    ours, oracle = policies("one view")
    with runtime.load(bundle) as policy, policy.start(instruction="reach") as episode:
        for seed in range(2):
            seen = observed(TINY, seed=seed, size=(112, 112))
            episode.act(seen)
            picture = episode.ask("future_frame")
            codes = episode.ask("future_codes")
            runs = episode.stats.num_runs
            assert runs["future_codes"] == runs["future_frame"] == seed + 1
            prepared = oracle.prepare(instruction="reach", **seen)
            want = oracle.foreseen(oracle.hidden(oracle.codes(prepared.pixel_values), prepared[1]))
            assert codes.dtype == np.int32 and np.array_equal(codes, want.numpy())
            assert picture.shape == (16, 16, 3) and 0 <= picture.min() < picture.max() <= 255
            assert relative_error(picture, oracle.picture(want[0])) <= END_TO_END
    assert {policy.graph.outputs[name].every for name in FORESEEN} == {0}
    means = policy.graph.outputs["future_frame"].means
    assert (means.camera, means.steps, means.is_middle) == ("frame", TINY.head.action_horizon, True)


def test_an_instruction_that_has_no_room_is_refused(bundle):
    with runtime.load(bundle) as policy, pytest.raises(ValueError, match="tokens"):
        policy.start(instruction="open the drawer, " * 30)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"vision.num_res_blocks": (1,)}, "a number for each level"),
        ({"vision.num_res_blocks": (1, 0)}, "vision.num_res_blocks must be above zero"),
        ({"vision.ch": 48}, "must divide vision.ch=48"),
        ({"vision.image_size": 17}, "must divide vision.image_size=17"),
        ({"vision.z_channels": 17}, "z_channels must be at most 16"),
        ({"vision.z_channels": 5}, "32 codes from prompt.first_code=440"),
        ({"vision.out_hidden_size": 32}, "must equal"),
        ({"language.num_attention_heads": 3}, "language.num_attention_heads=3 must divide"),
        ({"language.partial_rotary_factor": 0.3}, "partial_rotary_factor must leave pairs"),
        ({"language.layer_norm_eps": 2.0}, "layer_norm_eps must be below 1"),
        ({"head.num_heads": 5}, "head.num_heads=5 must divide"),
        ({"head.action_dim": 5}, "normalization.action has 7 modes"),
        ({"prompt.text_slots": 97}, "prompt.text_slots must be from 4 to max_text=96"),
        ({"prompt.text_slots": 80}, "must be at most the 69 rows"),
        ({"views": ("frame", "frame")}, "each once"),
        ({"model_type": "qwenoft"}, "model_type must be 'upvla'"),
        ({"language": CONFIGS["qwenoft-tiny"]().language}, "goes with a PhiConfig"),
    ],
)
def test_a_configuration_that_does_not_fit_together_is_refused(changes, said):
    with pytest.raises(ValueError, match=said):
        with_fields(TINY, changes)
