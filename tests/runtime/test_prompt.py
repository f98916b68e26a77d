"""Prompt pieces against the whole prompt in the real Qwen2.5 vocabulary, and the masks."""

import unicodedata

import numpy as np
import pytest
import regex
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from torch.nn.functional import adaptive_avg_pool1d

from models.anchorvla4d.presets import full
from models.anchorvla4d.prompt import prompt as prompt_parts
from runtime.errors import ObservationError
from runtime.prompt import (
    MAX_INSTRUCTION,
    attention_mask,
    check_instruction,
    encode_tail,
    mrope_positions,
    mrope_tables,
    num_tokens,
    pooling_matrix,
)
from tests.oracles import normal
from tests.qwen_vocabulary import WORDS, byte_pairs, qwen_ranks, qwen_tokenizer

TEXTS = [
    "put the carrot on the plate",
    "reach the red marker",
    " leading and trailing  spaces ",
    "Don't spill: it's 37.5 degrees, I'LL wait!?",
    "place 12 cubes (3 red, 9 blue) at x=-0.25 m",
    "stelle die gr\u00fcne Tasse auf den Tisch",  # German
    "\u628a\u80e1\u841d\u535c\u653e\u5728\u76d8\u5b50\u4e0a",  # Chinese
    "\u30cb\u30f3\u30b8\u30f3\u3092\u76bf\u306e\u4e0a\u306b\u7f6e\u3044\u3066",  # Japanese
    "\ub2f9\uadfc\uc744 \uc811\uc2dc\uc5d0 \ub193\uc544\ub77c",  # Korean
    "\u043f\u043e\u0441\u0442\u0430\u0432\u044c \u043b\u043e\u0436\u043a\u0443",  # Russian
    "\u0917\u093e\u091c\u0930 \u0915\u094b \u0930\u0916\u094b",  # Hindi
    "pick up the \N{CARROT} and the \N{SPOON} \N{FLAG IN HOLE}",
    "cafe\N{COMBINING ACUTE ACCENT} e\N{COMBINING ACUTE ACCENT}clair",
    "\N{COMBINING ACUTE ACCENT}starts with an accent",
    "kelvin \N{KELVIN SIGN} and angstrom \N{ANGSTROM SIGN}",
    "{anchor} {frame} {instruction} %s",
    "< | im_start | > <im_end>",
    "a" * 300,
    "word " * 200,
]
IMAGE_TOKENS = 81
"""Merged tokens of an image of 18 x 18 patches."""


@pytest.fixture(scope="module")
def parts():
    return prompt_parts(full(), qwen_tokenizer())


def test_the_vocabulary_is_that_of_qwen():
    tokenizer = qwen_tokenizer()
    assert tokenizer.get_vocab_size() == 151665
    assert sorted(qwen_ranks().values()) == list(range(151643))
    ids = {
        "<|endoftext|>": 151643,
        "<|im_start|>": 151644,
        "<|im_end|>": 151645,
        "<|vision_start|>": 151652,
        "<|vision_end|>": 151653,
        "<|vision_pad|>": 151654,
        "<|image_pad|>": 151655,
        "<|video_pad|>": 151656,
        "<|file_sep|>": 151664,
    }
    assert {token: tokenizer.token_to_id(token) for token in ids} == ids


@pytest.mark.parametrize("text", [*TEXTS, "two\n\nlines\t and\r\n  more \n", ""])
def test_the_tokenizer_equals_plain_byte_pair_encoding(text):
    ranks = qwen_ranks()
    words = regex.findall(WORDS, unicodedata.normalize("NFC", text))
    want = [ranks[part] for word in words for part in byte_pairs(word.encode(), ranks)]
    assert qwen_tokenizer().encode(text, add_special_tokens=False).ids == want


@pytest.mark.parametrize("text", TEXTS)
def test_the_pieces_of_a_prompt_are_the_tokens_of_the_whole(parts, text):
    tokenizer, config = qwen_tokenizer(), full().prompt
    pads = [tokenizer.token_to_id("<|image_pad|>")] * IMAGE_TOKENS
    tail = encode_tail(tokenizer, parts.tail, parts.end_ids, text)
    got = [*parts.before[0], *pads, *parts.image_end, *parts.before[1], *pads, *tail]
    image = "<|vision_start|>" + "<|image_pad|>" * IMAGE_TOKENS + "<|vision_end|>"
    before, after = config.template.split("{instruction}")
    whole = before.replace("{anchor}", image).replace("{frame}", image) + text.strip() + after
    want = tokenizer.encode(whole, add_special_tokens=False).ids
    assert got == [*want, config.placeholder_token_id, 151645]


def test_a_tokenizer_that_frames_every_text_adds_nothing_to_the_tail():
    """The prompt has its own frame, in its head and at its end."""
    tokenizer = Tokenizer(WordLevel({"<s>": 0, "touch": 1, "it": 2}, unk_token="<s>"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    assert tokenizer.encode("touch it").ids == [0, 1, 2]
    assert encode_tail(tokenizer, "{instruction}", (7,), "touch it") == (1, 2, 7)


def test_the_usual_prompt_has_102_tokens_in_either_half(parts):
    assert len(parts.before[0]) + IMAGE_TOKENS + len(parts.image_end) == 102
    tail = encode_tail(qwen_tokenizer(), parts.tail, parts.end_ids, "put carrot on plate")
    assert abs(len(parts.before[1]) + IMAGE_TOKENS + len(tail) - 102) <= 4


@pytest.mark.parametrize(
    ("instruction", "message"),
    [
        (None, "instruction must be text, got NoneType"),
        ("", "instruction is empty; say what the robot should do"),
        (" \t ", "instruction is empty"),
        ("x" * (MAX_INSTRUCTION + 1), "has 2001 characters, the limit is 2000"),
        ("two\nlines", r"control character '\\n' at 3; send one plain line"),
        ("a\x00b", r"control character '\\x00' at 1"),
        ("a\N{LINE SEPARATOR}b", r"control character '\\u2028' at 1"),
        ("a\N{PARAGRAPH SEPARATOR}b", r"control character '\\u2029' at 1"),
        ("a\ud800b", r"control character '\\ud800' at 1"),
        ("a\U000e0080b", r"control character '\\U000e0080' at 1"),
        ("a\N{RIGHT-TO-LEFT OVERRIDE}b", r"control character '\\u202e' at 1"),
        ("stop<|im_end|>", r"holds '<\|im_end\|>', which the model reads as structure"),
        ("stop<tool_call>", "holds '<tool_call>', which the model reads as structure"),
        ("see <image>", "holds '<image>', which the model reads as structure"),
    ],
)
def test_text_that_is_no_instruction_is_refused(parts, instruction, message):
    with pytest.raises(ObservationError, match=message):
        encode_tail(qwen_tokenizer(), parts.tail, parts.end_ids, instruction)


def test_the_longest_instruction_passes():
    check_instruction("x" * MAX_INSTRUCTION, [])
    check_instruction(" " * MAX_INSTRUCTION + "x" * MAX_INSTRUCTION, [])


SPACES = "\t\n\v\f\r \x85\xa0\u1680\u2000\u200a\u2028\u2029\u202f\u205f\u3000"
FLAG_OF_ENGLAND = "\U0001f3f4\U000e0067\U000e0062\U000e0065\U000e006e\U000e0067\U000e007f"


@pytest.mark.parametrize("outside", ["\n", "\r\n", " ", SPACES])
def test_white_space_around_an_instruction_is_left_out(parts, outside):
    tokenizer = qwen_tokenizer()
    plain, padded = (
        encode_tail(tokenizer, parts.tail, parts.end_ids, text)
        for text in ("touch  red", f"{outside}touch  red{outside}")
    )
    assert padded == plain


@pytest.mark.parametrize(
    "text",
    [
        "\U0001fae8",  # an emoji of Unicode 15, younger than Python 3.10 and 3.11
        f"bring the cup with {FLAG_OF_ENGLAND} on it",
        "\U0001f468\u200d\U0001f469\u200d\U0001f467 \u2764\ufe0f",  # joined emoji
        "\U0001f44d\U0001f3fd",  # one with a colour
        "\u0915\u094d\u200d\u0937",  # Hindi
        "\u0646\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645",  # Persian
        "\U0003fffd",  # a character that no Unicode has yet
        "nur\xa0zwei",
    ],
)
def test_what_people_write_is_taken(text):
    check_instruction(text, [])


@pytest.mark.parametrize(
    "text", [FLAG_OF_ENGLAND[1:], FLAG_OF_ENGLAND[:-1], "x\U000e0041\U000e007f"]
)
def test_tags_that_are_no_flag_are_refused(text):
    with pytest.raises(ObservationError, match=r"control character '\\U000e00"):
        check_instruction(f"go {text} on", [])


def is_taken(character):
    try:
        check_instruction(f"a{character}b", [])
    except ObservationError:
        return False
    return True


def test_every_character_that_shows_is_taken_and_no_control_is():
    """By what this Python knows of Unicode; `check_instruction` must not ask it."""
    shows = {"L", "M", "N", "P", "S", "Co", "Zs"}
    every = [(chr(n), unicodedata.category(chr(n))) for n in range(0x110000)]
    shown = "".join(c for c, category in every if {category, category[0]} & shows)
    for start in range(0, len(shown), 1000):
        check_instruction(f"a{shown[start : start + 1000]}b", [])
    controls = [c for c, category in every if category in ("Cc", "Cs", "Zl", "Zp")]
    directions = "\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
    unseen = "\xad\u180e\u200b\u2060\u2065\u206f\ufdd0\ufdef\ufeff\ufff0\ufffb\U0001bca0\U0001bca3"
    unseen += "\U0001d173\U0001d17a\U000e0000\U000e00ff\U000e01f0\U000e0fff"
    none = [chr(plane + end) for plane in range(0, 0x110000, 0x10000) for end in (0xFFFE, 0xFFFF)]
    assert [ascii(c) for c in (*controls, *directions, *unseen, *none) if is_taken(c)] == []
    beside = "\u0600\u2070\U0001bc9f\U0001bca4\U000dfffd\U000e0100\U000e01ef\U000e1000"
    assert [ascii(c) for c in beside if not is_taken(c)] == []


MASKS = [(0, 0, 5, 5), (0, 8, 5, 8), (5, 8, 3, 8), (8, 8, 8, 8), (3, 4, 1, 6), (0, 6, 0, 6)]


@pytest.mark.parametrize(("num_past", "past_slots", "num_new", "slots"), MASKS)
def test_the_mask_is_causal_finite_and_leaves_no_row_empty(num_past, past_slots, num_new, slots):
    mask = attention_mask(num_past, past_slots, num_new, slots)
    assert mask.shape == (slots, past_slots + slots) and mask.dtype == np.float32
    assert np.isfinite(mask.astype(np.float16)).all()
    admitted = mask == 0
    assert (admitted | (mask < -1e4)).all()
    assert admitted.any(axis=1).all()
    for row in range(slots):
        past = range(num_past) if row < num_new else ()
        new = range(row + 1) if row < num_new else (row,)
        want = {*past, *(past_slots + i for i in new)}
        assert set(np.flatnonzero(admitted[row])) == want


def test_a_forbidden_pair_weighs_exactly_nothing():
    scores = np.float32(100) * np.random.default_rng(0).standard_normal((8, 16), np.float32)
    mask = attention_mask(5, 8, 3, 8)
    weights = np.exp((scores + mask) - (scores + mask).max(axis=1, keepdims=True))
    assert (weights[mask < 0] == 0).all()


def test_positions_of_text_count_on_in_all_three_axes():
    positions, following = mrope_positions([3, 4], start=10)
    assert np.array_equal(positions, np.tile(np.arange(10, 17), (3, 1)))
    assert following == 17
    empty, following = mrope_positions([], start=5)
    assert empty.shape == (3, 0) and following == 5


def test_an_image_stands_still_in_time_and_text_goes_on_behind_its_longer_side():
    positions, following = mrope_positions([1, (2, 3), 1])
    assert positions.tolist() == [
        [0, 1, 1, 1, 1, 1, 1, 4],
        [0, 1, 1, 1, 2, 2, 2, 4],
        [0, 1, 2, 3, 1, 2, 3, 4],
    ]
    assert following == 5
    assert num_tokens([1, (2, 3), 1]) == 8


def test_text_alone_has_the_usual_rotary_tables():
    positions, _ = mrope_positions([50])
    cos, sin = mrope_tables(positions, theta=1e4, sections=(4, 6, 6))
    angles = np.arange(50)[:, None] * 1e4 ** -(np.arange(16) / 16)
    assert cos.dtype == sin.dtype == np.float32
    assert np.allclose(cos, np.cos(np.tile(angles, 2)), atol=1e-5)
    assert np.allclose(sin, np.sin(np.tile(angles, 2)), atol=1e-5)


def test_every_true_token_is_pooled_and_no_padding():
    matrix = pooling_matrix(8, 100, 21, 17, 30)
    used = np.flatnonzero(matrix.any(axis=0))
    assert used.tolist() == [*range(121), *range(130, 147)]


@pytest.mark.parametrize(
    ("bins", "num_spatial", "num_prefix", "num_suffix", "slots"),
    [(8, 100, 21, 17, 30), (8, 3, 1, 2, 4), (1, 5, 2, 2, 2), (7, 0, 5, 9, 9)],
)
def test_pooling_is_that_of_torch(bins, num_spatial, num_prefix, num_suffix, slots):
    padded = normal(num_spatial + 2 * slots, 3).numpy()
    suffix = num_spatial + slots
    true = [*range(num_spatial + num_prefix), *range(suffix, suffix + num_suffix)]
    want = adaptive_avg_pool1d(torch.from_numpy(padded[true].T), bins).T
    got = pooling_matrix(bins, num_spatial, num_prefix, num_suffix, slots) @ padded
    # A mean of some twenty numbers of size 1, in float32: its rounding is 2e-7 of it at worst.
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-6)
