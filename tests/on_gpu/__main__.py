"""python -m tests.on_gpu BUNDLE ...: what a tick costs on the real driver, replayed and enqueued.

Kernels are torch's and no figure here is one of TensorRT: what is measured is launcher, interpreter
and cache. One line of JSON per bundle.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import runtime
from runtime.backends.tensorrt import TensorRTBackend
from runtime.pages.benchmark import Quantiles, Timing, measure
from runtime.policy import Policy
from tests.on_gpu.tensorrt_stand_in import Delays, tensorrt, why_no_gpu
from tests.simulation import make_plan

TICKS = 100


def main(bundles: list[str]) -> int:
    if reason := why_no_gpu():
        print(reason, file=sys.stderr)
        return 1
    sys.modules["tensorrt"] = tensorrt(Delays())
    for bundle in bundles:
        print(json.dumps(figures(Path(bundle))), flush=True)
    return 0


def figures(path: Path) -> dict[str, Any]:
    """Of one bundle, in milliseconds."""
    backend = TensorRTBackend(make_plan)
    with runtime.load(path, backend=lambda _: backend, accept_failed_gates=True) as policy:
        device = backend.cuda.driver.Device(0)
        (launcher,) = backend._launchers
        found: dict[str, Any] = {
            "bundle": path.name,
            "gpu": device.name(),
            "worst_parity": max(p.error / p.allowed for p in policy.check()),
            "captured": len(launcher.captured),
            "replayed": _timed(policy),
        }
        for batch in launcher._captured.values():
            batch.graph.close()
        launcher._captured.clear()  # what follows is enqueued stage by stage
        found["enqueued"] = _timed(policy)
        return found


def _timed(policy: Policy) -> dict[str, Any]:
    return {kind: _row(timing) for kind, timing in measure(policy, TICKS).items()}


def _row(timing: Timing) -> dict[str, Any]:
    stages = {name: _round(found) for name, found in timing.stages.items()}
    return {"tick": _round(timing.tick), "outside": _round(timing.overhead), "stages": stages}


def _round(found: Quantiles) -> list[float]:
    """Median and 99th percentile."""
    return [round(found.p50, 4), round(found.p99, 4)]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
