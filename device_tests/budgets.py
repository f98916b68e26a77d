"""What each board has to keep: one table. A row that nobody has measured says so."""

from __future__ import annotations

from dataclasses import dataclass

from runtime.board.machine import Machine

FULL_SIZE_WEIGHTS = 100_000_000
"""A policy with at least so many weights is judged by `Budget.full`, a smaller one by `demo`."""
GIB = 1 << 30
TARGET = "not measured; target"


@dataclass(frozen=True, kw_only=True, slots=True)
class SizeBudget:
    """What depends on the size of the policy."""

    rate_hz: float
    """Ticks per second in the paced loop. Every one thinks: a robot's loop thinks less often."""
    warm_p99_ms: float
    """Camera image to action chunk, 99th percentile."""
    resident_mb: float
    """Memory of the process, and on a board all that the policy takes; 1e6 bytes."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Budget:
    """What one board has to keep. Parity is not here: each bundle's manifest states its own."""

    measured: str
    """Where the numbers come from."""
    demo: SizeBudget
    full: SizeBudget
    jitter_p99_ms: float
    """How late a tick of the undisturbed loop starts."""
    missed_share: float
    """Of the undisturbed loop's ticks: late with their action, or dropped."""
    missed_share_under_pressure: float
    """Likewise, beside a busy process per core, and beside one that keeps touching memory."""
    growth_mb_per_10k_ticks: float
    """Of the resident memory."""
    first_tick_ratio: float
    """First tick of an episode, and first after a pause, over a warm one; medians."""
    between_runs_share: float
    """Of the warm median: less than that is no difference between two runs."""
    soak_slowdown: float
    """Median tick at the end of a soak over that at its beginning."""
    temperature_c: float
    """Of the hottest sensor, at any time in the run."""
    throttling_allowed: bool = False

    def for_size(self, num_weights: int) -> SizeBudget:
        """The part for a policy of so many weights."""
        return self.full if num_weights >= FULL_SIZE_WEIGHTS else self.demo


# The growth is a tenth of a promise (100 MB in a million ticks) seen in a run of seconds: memory
# comes in pages and arenas, so less cannot be told from nothing. Orin throttles from 99 degrees on.
BUDGETS: dict[str, Budget] = {
    "x86-cpu": Budget(
        measured="AMD EPYC, 2 shared threads, float32 demo: warm p99 12 to 25 ms; full: target",
        demo=SizeBudget(rate_hz=10.0, warm_p99_ms=40.0, resident_mb=400.0),
        full=SizeBudget(rate_hz=0.5, warm_p99_ms=2000.0, resident_mb=16_000.0),
        jitter_p99_ms=10.0,
        missed_share=0.02,
        missed_share_under_pressure=0.25,
        growth_mb_per_10k_ticks=10.0,
        first_tick_ratio=2.5,
        between_runs_share=0.15,
        soak_slowdown=1.5,
        temperature_c=95.0,
    ),
    "orin-nano-8gb": Budget(
        measured=TARGET,
        demo=SizeBudget(rate_hz=30.0, warm_p99_ms=20.0, resident_mb=1500.0),
        full=SizeBudget(rate_hz=3.0, warm_p99_ms=300.0, resident_mb=6000.0),
        jitter_p99_ms=3.0,
        missed_share=0.001,
        missed_share_under_pressure=0.02,
        growth_mb_per_10k_ticks=10.0,
        first_tick_ratio=2.5,
        between_runs_share=0.03,
        soak_slowdown=1.1,
        temperature_c=90.0,
    ),
    "orin-nx-16gb": Budget(
        measured=TARGET,
        demo=SizeBudget(rate_hz=30.0, warm_p99_ms=20.0, resident_mb=1500.0),
        full=SizeBudget(rate_hz=4.0, warm_p99_ms=240.0, resident_mb=8000.0),
        jitter_p99_ms=3.0,
        missed_share=0.001,
        missed_share_under_pressure=0.02,
        growth_mb_per_10k_ticks=10.0,
        first_tick_ratio=2.5,
        between_runs_share=0.03,
        soak_slowdown=1.1,
        temperature_c=90.0,
    ),
    "agx-orin-64gb": Budget(
        measured=TARGET,
        demo=SizeBudget(rate_hz=50.0, warm_p99_ms=15.0, resident_mb=2000.0),
        full=SizeBudget(rate_hz=8.0, warm_p99_ms=120.0, resident_mb=10_000.0),
        jitter_p99_ms=2.0,
        missed_share=0.001,
        missed_share_under_pressure=0.01,
        growth_mb_per_10k_ticks=10.0,
        first_tick_ratio=2.5,
        between_runs_share=0.03,
        soak_slowdown=1.1,
        temperature_c=90.0,
    ),
    "thor": Budget(
        measured=TARGET,
        demo=SizeBudget(rate_hz=50.0, warm_p99_ms=12.0, resident_mb=2000.0),
        full=SizeBudget(rate_hz=15.0, warm_p99_ms=60.0, resident_mb=10_000.0),
        jitter_p99_ms=2.0,
        missed_share=0.001,
        missed_share_under_pressure=0.01,
        growth_mb_per_10k_ticks=10.0,
        first_tick_ratio=2.5,
        between_runs_share=0.03,
        soak_slowdown=1.1,
        temperature_c=90.0,
    ),
}

# What the device tree calls the module, and the memory that the kernel sees of it: a module of the
# same name with other memory has other bandwidth, and no row.
_MODULES = (
    ("Orin Nano", (5 * GIB, 8 * GIB), "orin-nano-8gb"),
    ("Orin NX", (11 * GIB, 16 * GIB), "orin-nx-16gb"),
    ("AGX Orin", (45 * GIB, 64 * GIB), "agx-orin-64gb"),
    ("Thor", (0, 1024 * GIB), "thor"),
)


def choose_board(machine: Machine, named: str | None = None) -> str:
    """Key of `BUDGETS` for a machine, or the one that was named.

    Raises:
        ValueError: there is no such row, or none for this machine.
    """
    if named is not None:
        if named not in BUDGETS:
            raise ValueError(f"no budget for board {named!r}; there is {', '.join(BUDGETS)}")
        return named
    for words, (low, high), board in _MODULES:
        if words in machine.board and low <= machine.memory_bytes <= high:
            return board
    if machine.board.lower().startswith(("x86", "amd64")):
        return "x86-cpu"
    raise ValueError(
        f"no budget for this machine ({machine.board}, {machine.memory_bytes / GIB:.1f} GiB "
        f"of memory): name the nearest with --board, one of {', '.join(BUDGETS)}, or add a row to "
        "device_tests/budgets.py"
    )
