"""The measured run: one pass over a bundle on this machine, whose numbers all tests share.

Parity comes first. An engine that computes something else is not timed: `Measured.run` is None.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import AbstractContextManager, closing, nullcontext

import runtime
from device_tests.budgets import BUDGETS, choose_board
from device_tests.comparison import noise_ms, read_reference
from device_tests.config import MeasureConfig
from device_tests.measure.conditions import (
    Conditions,
    Look,
    read_available_mb,
    read_conditions,
    read_resident_mb,
)
from device_tests.measure.growth import measure_growth
from device_tests.measure.latency import WARM, measure_latency
from device_tests.measure.pacing import pace
from device_tests.measure.pressure import cpu_pressure, memory_pressure
from device_tests.measure.scene import Scene
from device_tests.measure.soak import soak
from device_tests.provenance import read_provenance
from device_tests.result import Measured, TimedRun
from runtime.backends.registry import MakeBackend
from runtime.board.machine import Machine, read_machine
from runtime.control.clock import Clock, MonotonicClock

CALM, BUSY_CORES, BUSY_MEMORY = "undisturbed", "a busy process per core", "memory in use"


def measure_all(
    config: MeasureConfig,
    *,
    backend: str | MakeBackend | None = None,
    machine: Machine | None = None,
    clock: Clock | None = None,
    look: Look = read_conditions,
    read_mb: Callable[[], float] = read_resident_mb,
    on_part: Callable[[str], None] = lambda part: None,
) -> Measured:
    """Measure everything once.

    Args:
        config: what, and for how long.
        backend: where engines run; chosen by `config.backend` if left out.
        machine: where this runs; read from it if left out.
        clock: monotonic time by default.
        look: reads the sensors.
        read_mb: resident memory of this process; 1e6 bytes.
        on_part: told what begins.

    Raises:
        ValueError: there is no budget for this machine, or the baseline is no result.
        BundleError, EngineError: the bundle does not load here.
    """
    clock = clock or MonotonicClock()
    machine = machine or read_machine()
    board = choose_board(machine, config.board)
    baseline = None if config.baseline is None else read_reference(config.baseline)
    before, free_mb = look(), read_available_mb()
    backend = backend or config.backend or default_backend(machine)
    on_part("cold start")
    start = clock()
    policy = runtime.load(config.bundle, embodiment=config.embodiment, backend=backend)
    with closing(policy):
        _ticker(policy, Scene(policy))()
        cold_start_s = clock() - start
        taken_mb, resident_mb = free_mb - read_available_mb(), read_mb()
        on_part("parity with the golden data")
        parity = tuple(policy.check())
        provenance = read_provenance(
            policy.bundle.manifest,
            board=board,
            machine=machine,
            backend=policy.backend,
            commit=config.commit,
        )
        run = None
        if all(verdict.passed for verdict in parity):
            rate_hz = BUDGETS[board].for_size(provenance.num_weights).rate_hz
            run = _timed_run(policy, config, rate_hz, clock, look, read_mb, on_part)
        return Measured(
            provenance=provenance,
            before=before,
            after=look(),
            cold_start_s=cold_start_s,
            resident_mb=resident_mb,
            taken_mb=taken_mb,
            parity=parity,
            run=run,
            baseline=baseline,
        )


def _timed_run(
    policy: runtime.Policy,
    config: MeasureConfig,
    rate_hz: float,
    clock: Clock,
    look: Look,
    read_mb: Callable[[], float],
    on_part: Callable[[str], None],
) -> TimedRun:
    scene, looks = Scene(policy), list[Conditions]()

    def begin(part: str) -> None:
        looks.append(look())
        on_part(part)

    begin("latency")
    latency = measure_latency(
        policy,
        scene,
        clock,
        seconds=config.seconds,
        num_idle=config.num_idle,
        idle_s=config.idle_s,
    )
    pacing = {}
    for name, pressure in _pressures(config.memory_share).items():
        begin(f"{rate_hz:g} Hz, {name}")
        with pressure():
            pacing[name] = pace(policy, scene, clock, rate_hz=rate_hz, seconds=config.seconds)
    begin("memory")
    tick = _ticker(policy, scene)
    growth = measure_growth(tick, clock, read_mb, seconds=config.seconds)
    soaked = None
    if config.soak_s:
        begin(f"thermal soak, {config.soak_s:g} s")
        soaked = soak(tick, clock, look, seconds=config.soak_s)
    return TimedRun(
        looks=tuple(looks),
        latency=latency,
        noise_ms=noise_ms(latency[WARM].ticks_ms),
        pacing=pacing,
        growth=growth,
        soak=soaked,
    )


def default_backend(machine: Machine) -> str:
    """Key of `BACKENDS`."""
    return "tensorrt" if machine.is_jetson else "onnxruntime"


def _pressures(memory_share: float) -> dict[str, Callable[[], AbstractContextManager[None]]]:
    num_bytes = int(memory_share * read_available_mb() * 1e6)
    return {
        CALM: nullcontext,
        BUSY_CORES: lambda: cpu_pressure(len(os.sched_getaffinity(0))),
        BUSY_MEMORY: lambda: memory_pressure(num_bytes),
    }


def _ticker(policy: runtime.Policy, scene: Scene) -> Callable[[], None]:
    """Warm ticks of one episode."""
    episode = policy.start(**scene.given())

    def tick() -> None:
        episode.act(scene.observe())

    return tick
