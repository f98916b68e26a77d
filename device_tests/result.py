"""What a measured run found: plain data with a few figures derived from it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from device_tests.budgets import BUDGETS, Budget, SizeBudget
from device_tests.comparison import Change, Reference, compare
from device_tests.measure.conditions import Conditions, throttled
from device_tests.measure.growth import Growth
from device_tests.measure.latency import WARM, Latency
from device_tests.measure.pacing import Pacing
from device_tests.measure.soak import Soak
from device_tests.provenance import Provenance
from runtime.backends.parity import Parity


@dataclass(frozen=True, kw_only=True, slots=True)
class TimedRun:
    """What was measured of a bundle that computes the right thing."""

    latency: Mapping[str, Latency]
    """By kind of tick."""
    noise_ms: float
    """Of the median of warm ticks, from two halves of the same run."""
    pacing: Mapping[str, Pacing]
    """By what else went on."""
    growth: Growth
    soak: Soak | None
    looks: tuple[Conditions, ...]
    """At the sensors, before each part."""

    @property
    def warm_p50_ms(self) -> float:
        return self.latency[WARM].spread.p50_ms


@dataclass(frozen=True, kw_only=True, slots=True)
class Measured:
    """The result of a run."""

    provenance: Provenance
    before: Conditions
    after: Conditions
    cold_start_s: float
    """From a bundle on disk to the first action: verify, load, warm up, act. Measured once."""
    resident_mb: float
    """Of the process, with the policy warm; 1e6 bytes."""
    taken_mb: float
    """What loading took from the memory of the whole machine, the GPU's part included."""
    parity: tuple[Parity, ...]
    run: TimedRun | None
    """None where parity failed."""
    baseline: Reference | None
    """The last accepted result."""

    @property
    def budget(self) -> Budget:
        return BUDGETS[self.provenance.board]

    @property
    def size_budget(self) -> SizeBudget:
        return self.budget.for_size(self.provenance.num_weights)

    @property
    def looks(self) -> list[Conditions]:
        """All looks at the sensors, in their order."""
        between = self.run.looks if self.run else ()
        of_soak = self.run.soak.samples if self.run and self.run.soak else ()
        return [self.before, *between, *(sample.conditions for sample in of_soak), self.after]

    @property
    def throttled(self) -> tuple[str, ...]:
        """What held the clocks down at any look, in words."""
        return throttled(self.looks)

    @property
    def hottest_c(self) -> tuple[str, float] | None:
        """Sensor and degrees; None where there is no sensor."""
        degrees = [(c, name) for look in self.looks for name, c in look.temperatures_c.items()]
        return max(degrees)[::-1] if degrees else None

    @property
    def reference(self) -> Reference | None:
        """What a later run compares itself with; None where nothing was timed."""
        if self.run is None:
            return None
        return Reference(
            board=self.provenance.board,
            power_mode=self.provenance.power_mode,
            way_to_wait=self.provenance.way_to_wait,
            num_weights=self.provenance.num_weights,
            median_ms=self.run.warm_p50_ms,
            noise_ms=self.run.noise_ms,
            throttled=bool(self.throttled),
            commit=self.provenance.commit,
            date=self.provenance.date,
        )

    def change(self) -> Change:
        """This run against the last accepted result.

        Raises:
            ValueError: there is none, or the two cannot be compared; says why.
        """
        if self.baseline is None:
            raise ValueError("no last accepted result was named with --baseline")
        if self.reference is None:
            raise ValueError("nothing was timed")
        share = self.budget.between_runs_share
        return compare(self.reference, self.baseline, between_runs_share=share)
