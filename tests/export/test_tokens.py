"""Language calls take what the longest prompt takes, with a margin, and no guess of a user's."""

import pytest

from export.tokens import choose_tokens
from models.anchorvla4d.prompt import fixed_tokens
from models.checkpoint import load_checkpoint
from models.demo import CHECKPOINT

GRID = (8, 8)
SHORT, LONG = "go", "put the green marker that you saw first beside the red one and then go home"


@pytest.fixture(scope="module")
def checkpoint():
    return load_checkpoint(CHECKPOINT)


def needed(checkpoint, instruction, margin=0):
    """Tokens of the longer call, with a margin for the instruction's."""
    prefix, suffix = fixed_tokens(checkpoint.config, checkpoint.parts, GRID).values()
    return max(prefix, suffix + len(checkpoint.tail_ids(instruction)) + margin)


def test_the_longest_instruction_decides_with_half_as_much_again_and_eight_at_least(checkpoint):
    shortest = len(checkpoint.tail_ids("a"))
    for text, others in ((SHORT, []), (LONG, [SHORT, "touch the red marker"])):
        own = len(checkpoint.tail_ids(text)) - shortest
        margin = max(8, own // 2)
        found = choose_tokens(checkpoint, GRID, [*others, text], None)
        assert found.room == needed(checkpoint, text, margin)
        assert found.slots == -(-found.room // 8) * 8
        assert found.slots - found.room < 8
        assert not found.warning
    assert margin > 8, "the long instruction tells the two rules apart"


def test_a_larger_image_takes_more(checkpoint):
    small, large = (choose_tokens(checkpoint, g, [LONG], None).slots for g in (GRID, (18, 18)))
    assert large - small == pytest.approx((81 - 16), abs=8)


def test_without_an_episode_there_is_room_for_a_sentence(checkpoint):
    known = "put the carrot on the plate"
    assert choose_tokens(checkpoint, GRID, [], None).room == needed(checkpoint, known, 32)


def test_what_is_no_instruction_is_left_to_its_reader(checkpoint):
    found = choose_tokens(checkpoint, GRID, ["", "two\nlines", SHORT], None)
    assert found == choose_tokens(checkpoint, GRID, [SHORT], None)


def test_too_few_tokens_are_refused_with_the_number_that_is_needed(checkpoint):
    least = needed(checkpoint, LONG)
    assert choose_tokens(checkpoint, GRID, [LONG], least).slots == least
    message = (
        rf"^the prompt takes 36 prefix and {least} suffix tokens at 8x8 patches for '{LONG}', but "
        rf"--tokens is {least - 1}: give at least {least}, or leave it out for "
    )
    with pytest.raises(ValueError, match=message):
        choose_tokens(checkpoint, GRID, [SHORT, LONG], least - 1)


def test_more_than_a_quarter_of_empty_slots_is_warned_of(checkpoint):
    computed = choose_tokens(checkpoint, GRID, [SHORT], None).slots
    most = computed * 4 // 3
    assert choose_tokens(checkpoint, GRID, [SHORT], most).warning == ""
    words = choose_tokens(checkpoint, GRID, [SHORT], most + 1).warning
    assert words.startswith(f"--tokens {most + 1} leaves 26% of every language call empty")
    assert words.endswith(f"leave it out for {computed}")


def test_the_demos_own_choice_is_no_waste(checkpoint):
    assert not choose_tokens(checkpoint, GRID, ["touch the green marker"], 64).warning
