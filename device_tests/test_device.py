"""What a bundle promises on a board, each promise judged on the same measured run.

Run by `python -m device_tests BUNDLE`; budgets are in `budgets.py`, the run is in `measured.py`.
"""

from __future__ import annotations

import pytest

from device_tests.budgets import Budget
from device_tests.ledger import Ledger
from device_tests.measure.latency import AFTER_IDLE, FIRST, WARM
from device_tests.measured import BUSY_CORES, BUSY_MEMORY, CALM
from device_tests.result import Measured, TimedRun

SHORT_OF_SENSORS = "this machine has no sensor that the runtime can read"


def test_every_stage_computes_what_its_exporter_measured(
    measured: Measured, ledger: Ledger
) -> None:
    stages = measured.parity[:-1]
    worst = max(stages, key=lambda verdict: verdict.error / verdict.allowed)
    name = f"parity of {len(stages)} stages, worst: {worst.name}"
    ledger.at_most(name, worst.error, worst.allowed)


def test_the_actions_are_those_of_the_reference(measured: Measured, ledger: Ledger) -> None:
    actions = measured.parity[-1]
    ledger.at_most("parity of the actions, end to end", actions.error, actions.allowed)


def test_a_warm_tick_is_quick(run: TimedRun, measured: Measured, ledger: Ledger) -> None:
    p99_ms = run.latency[WARM].spread.p99_ms
    ledger.at_most("warm tick, p99", p99_ms, measured.size_budget.warm_p99_ms, "ms")


def test_the_first_tick_of_an_episode_is_not_the_slow_one(
    run: TimedRun, budget: Budget, ledger: Ledger
) -> None:
    first = run.latency[FIRST].spread.p50_ms / run.warm_p50_ms
    name = "first tick of an episode over a warm one, medians"
    ledger.at_most(name, first, budget.first_tick_ratio, "times")


def test_a_tick_after_a_pause_is_not_slow(run: TimedRun, budget: Budget, ledger: Ledger) -> None:
    name = "tick after a pause over a warm one, medians"
    if AFTER_IDLE not in run.latency:
        ledger.not_measured(name, "no ticks after a pause were asked for")
    ratio = run.latency[AFTER_IDLE].spread.p50_ms / run.warm_p50_ms
    ledger.at_most(name, ratio, budget.first_tick_ratio, "times")


def test_the_loop_starts_its_ticks_on_time(run: TimedRun, budget: Budget, ledger: Ledger) -> None:
    calm = run.pacing[CALM]
    name = f"jitter of the loop at {calm.rate_hz:g} Hz, p99"
    ledger.at_most(name, calm.jitter.p99_ms, budget.jitter_p99_ms, "ms")


@pytest.mark.parametrize("kind", [CALM, BUSY_CORES, BUSY_MEMORY])
def test_the_loop_meets_its_deadlines(
    kind: str, run: TimedRun, budget: Budget, ledger: Ledger
) -> None:
    pacing = run.pacing[kind]
    allowed = budget.missed_share if kind == CALM else budget.missed_share_under_pressure
    name = f"deadlines missed at {pacing.rate_hz:g} Hz, {kind}"
    ledger.at_most(name, 100 * pacing.missed_share, 100 * allowed, "%")


def test_the_process_fits_in_memory(measured: Measured, ledger: Ledger) -> None:
    ledger.at_most("resident memory", measured.resident_mb, measured.size_budget.resident_mb, "MB")


def test_the_policy_fits_in_the_boards_memory(measured: Measured, ledger: Ledger) -> None:
    name = "memory taken from CPU and GPU"
    if not measured.provenance.machine.is_jetson:
        ledger.not_measured(name, "only a Jetson has one memory for both; see resident memory")
    ledger.at_most(name, measured.taken_mb, measured.size_budget.resident_mb, "MB")


def test_memory_does_not_grow(run: TimedRun, budget: Budget, ledger: Ledger) -> None:
    name = f"memory growth per 10,000 ticks, seen over {run.growth.num_ticks:,}"
    ledger.at_most(name, run.growth.mb_per_10k_ticks, budget.growth_mb_per_10k_ticks, "MB")


def test_the_board_stays_cool(measured: Measured, budget: Budget, ledger: Ledger) -> None:
    if measured.hottest_c is None:
        ledger.not_measured("temperature", SHORT_OF_SENSORS)
    sensor, degrees = measured.hottest_c
    ledger.at_most(f"temperature, hottest: {sensor}", degrees, budget.temperature_c, "degrees C")


def test_nothing_throttles(measured: Measured, budget: Budget, ledger: Ledger) -> None:
    if not measured.throttled and not measured.provenance.machine.is_jetson:
        ledger.not_measured("throttling", SHORT_OF_SENSORS)
    ledger.nothing("throttling", measured.throttled, allowed=budget.throttling_allowed)


def test_a_long_run_does_not_slow_down(run: TimedRun, budget: Budget, ledger: Ledger) -> None:
    name = "soak: last quarter over the first, medians"
    if run.soak is None:
        ledger.not_measured(name, "no soak was asked for with --soak-s")
    ledger.at_most(name, run.soak.slowdown, budget.soak_slowdown, "times")


def test_it_is_not_slower_than_the_last_accepted_result(measured: Measured, ledger: Ledger) -> None:
    name = "warm median against the last accepted result"
    try:
        change = measured.change()
    except ValueError as error:
        ledger.not_measured(name, str(error))
    against = f"{name} ({change.direction})"
    ledger.at_most(against, change.difference_ms, change.noise_ms, "ms")
