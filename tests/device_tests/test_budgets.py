from dataclasses import fields, replace

import pytest

from device_tests.budgets import BUDGETS, FULL_SIZE_WEIGHTS, GIB, TARGET, choose_board
from runtime.board.machine import read_machine

BOARDS = ("x86-cpu", "orin-nano-8gb", "orin-nx-16gb", "agx-orin-64gb", "thor")


@pytest.fixture
def machine(tmp_path):
    """A machine by model, and by memory as its kernel sees it."""

    def make(board, gib):
        nowhere = read_machine(tmp_path, run=lambda arguments: "")
        return replace(nowhere, board=board, memory_bytes=int(gib * GIB))

    return make


@pytest.mark.parametrize(
    ("model", "gib", "board"),
    [
        ("x86_64", 23.5, "x86-cpu"),
        ("NVIDIA Jetson Orin Nano Developer Kit", 7.3, "orin-nano-8gb"),
        ("NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super", 7.4, "orin-nano-8gb"),
        ("NVIDIA Jetson Orin NX Engineering Reference Developer Kit", 15.3, "orin-nx-16gb"),
        ("NVIDIA Jetson AGX Orin Developer Kit", 61.4, "agx-orin-64gb"),
        ("NVIDIA Jetson AGX Thor Developer Kit", 122.8, "thor"),
    ],
)
def test_the_machine_chooses_its_row(machine, model, gib, board):
    assert choose_board(machine(model, gib)) == board


@pytest.mark.parametrize(
    ("model", "gib"),
    [
        ("NVIDIA Jetson Orin Nano Developer Kit", 3.6),
        ("NVIDIA Jetson AGX Orin Developer Kit", 29.8),
        ("aarch64", 8),
    ],
)
def test_a_machine_without_a_row_is_told_how_to_get_one(machine, model, gib):
    with pytest.raises(ValueError, match=rf"{model}, {gib:.1f} GiB .*--board, one of x86-cpu, "):
        choose_board(machine(model, gib))


def test_a_named_board_goes_before_the_machine(machine):
    assert choose_board(machine("x86_64", 8), "thor") == "thor"
    with pytest.raises(ValueError, match="no budget for board 'nano'; there is x86-cpu, orin-"):
        choose_board(machine("x86_64", 8), "nano")


def test_the_table_has_every_board_and_says_what_nobody_measured():
    assert tuple(BUDGETS) == BOARDS
    assert {board for board, b in BUDGETS.items() if b.measured == TARGET} == set(BOARDS[1:])
    assert not any(budget.throttling_allowed for budget in BUDGETS.values())


@pytest.mark.parametrize("board", BOARDS)
def test_a_tick_of_its_budget_fits_into_its_rate(board):
    for size in (BUDGETS[board].demo, BUDGETS[board].full):
        assert size.warm_p99_ms <= 1e3 / size.rate_hz


@pytest.mark.parametrize("board", BOARDS)
def test_every_number_has_a_unit_in_its_name_and_is_positive(board):
    budget = BUDGETS[board]
    parts = (budget, budget.demo, budget.full)
    numbers = {f.name: getattr(p, f.name) for p in parts for f in fields(p) if f.type == "float"}
    units = ("_ms", "_hz", "_mb", "_c", "_share", "_ratio", "_ticks", "_pressure", "_slowdown")
    assert len(numbers) == 11
    assert all(value > 0 and name.endswith(units) for name, value in numbers.items())


def test_the_size_of_the_policy_chooses_its_part():
    budget = BUDGETS["thor"]
    assert budget.for_size(5_000_000) is budget.demo
    assert budget.for_size(FULL_SIZE_WEIGHTS) is budget.full
