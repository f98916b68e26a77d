"""Does the control loop keep its rate? Every tick thinks, on the loop's absolute schedule."""

from __future__ import annotations

from dataclasses import dataclass

from device_tests.measure.latency import Spread
from device_tests.measure.scene import Scene, SceneRobot
from runtime.control.clock import Clock
from runtime.control.loop import LoopConfig, run_episode
from runtime.control.trace import Step
from runtime.declarations import from_source
from runtime.policy import Policy

MIN_TICKS = 10


@dataclass(frozen=True, kw_only=True, slots=True)
class Pacing:
    """One run of the loop."""

    rate_hz: float
    late_ms: tuple[float, ...]
    """How late each tick started."""
    act_ms: tuple[float, ...]
    """How long it thought."""
    num_dropped: int
    """Ticks that late ones swallowed."""

    @property
    def jitter(self) -> Spread:
        return Spread.of(self.late_ms)

    @property
    def num_missed(self) -> int:
        """Ticks whose action came after the next tick was due."""
        period_ms = 1e3 / self.rate_hz
        return sum(
            late + act > period_ms for late, act in zip(self.late_ms, self.act_ms, strict=True)
        )

    @property
    def missed_share(self) -> float:
        """Of all ticks that were due: late with their action, or dropped."""
        due = len(self.late_ms) + self.num_dropped
        return (self.num_missed + self.num_dropped) / due


def pace(policy: Policy, scene: Scene, clock: Clock, *, rate_hz: float, seconds: float) -> Pacing:
    """Run the loop at `rate_hz` for about so many seconds, `MIN_TICKS` ticks at least."""
    num_ticks = max(MIN_TICKS, round(rate_hz * seconds))
    config = LoopConfig(rate_hz=rate_hz, execute=1, max_steps=num_ticks + 1)
    late_ms, act_ms = list[float](), list[float]()

    def note(step: Step) -> None:
        late_ms.append(step.late_s * 1e3)
        act_ms.append((step.act_s or 0.0) * 1e3)

    operator = from_source(policy.inputs, "operator")
    given = {name: value for name, value in scene.given().items() if name in operator}
    trace = run_episode(
        policy,
        SceneRobot(scene, policy.chunk_shape[1]),
        config,
        given=given,
        clock=clock,
        on_step=note,
    )
    return Pacing(
        rate_hz=rate_hz,
        # The first tick computes the anchor; `Latency` knows what that costs.
        late_ms=tuple(late_ms[1:]),
        act_ms=tuple(act_ms[1:]),
        num_dropped=trace.num_dropped,
    )
