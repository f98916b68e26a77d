"""Does a bundle still compute what its exporter measured? The golden data says."""

from __future__ import annotations

from dataclasses import dataclass

from .backends.parity import relative_error
from .bundle import read_golden
from .policy import ACTIONS, Policy


@dataclass(frozen=True, slots=True)
class Verdict:
    """How far one tensor is from the golden one."""

    name: str
    error: float
    """Norm of the difference over the norm."""
    allowed: float

    @property
    def passed(self) -> bool:
        return self.error <= self.allowed


def check(policy: Policy) -> list[Verdict]:
    """Run the golden observation and compare what every engine writes, and the actions.

    The last verdict is about the actions, against the reference that knows nothing of stages.
    """
    golden = read_golden(policy.bundle)
    episode = policy.start(anchor=golden["anchor"], instruction=str(golden["instruction"]))
    policy.interpreter.forget()
    chunk = episode.act(golden["frame"], golden["state"], noise=golden["noise"])
    written = [n for s in policy.graph.stages if s.engine for n in s.outputs.values()]
    for name in written:
        policy.memory.download(name)
    errors = {n: relative_error(policy.memory.host(n), golden[f"stage/{n}"]) for n in written}
    errors[ACTIONS] = relative_error(chunk, golden[ACTIONS])
    manifest = policy.bundle.manifest
    allowed = dict(manifest.tolerance)
    allowed[ACTIONS] += manifest.action_error
    return [Verdict(name, error, allowed[name]) for name, error in errors.items()]
