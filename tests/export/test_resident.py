"""A bundle larger than the memory runs on ONNX Runtime as any other does, engine by engine."""

import numpy as np
import pytest

from export.engines.resident import ResidentBackend
from runtime.backends.onnxruntime import OnnxRuntimeBackend
from runtime.bundle import read_bundle, read_golden
from runtime.golden import Golden
from runtime.policy import Policy


def actions(bundle, backend):
    golden = Golden.of(bundle)
    policy = Policy(bundle, str(read_golden(bundle)["embodiment"]), backend)
    chunk = policy.start(**golden.given).act({**golden.observed, **golden.drawn}).actions.copy()
    policy.close()
    return chunk


@pytest.mark.parametrize("limit", [1, 4 << 20, 1 << 40])
def test_actions_do_not_depend_on_how_many_engines_are_loaded(demo_bundle, limit):
    bundle = read_bundle(demo_bundle)
    most, loads = [], []

    class Watched(ResidentBackend):
        def load(self, path):
            loads.append(path not in self._loaded)
            engine = super().load(path)
            most.append(self.resident_bytes - engine.num_bytes * (self.resident_bytes > limit))
            return engine

    want = actions(bundle, OnnxRuntimeBackend())
    assert np.array_equal(actions(bundle, Watched(limit)), want)
    assert max(most) <= limit
    number = len(bundle.manifest.engines)
    assert sum(loads) == number if limit == 1 << 40 else sum(loads) > number
