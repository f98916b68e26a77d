"""How large the numbers of an engine become: what float16 must not be given.

Every float tensor gets its largest magnitude as one more output, so that a scan needs no more
memory than a run.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from quant.formats import FLOAT16_MAX
from runtime.backends.onnxruntime_module import ort

HEADROOM = 2.0
"""Times the largest magnitude seen that a tensor must fit: calibration does not see everything."""


def scan_ranges(path: Path, inputs: Iterable[Mapping[str, NDArray[Any]]]) -> dict[str, float]:
    """Largest magnitude of every float tensor of the float32 engine at `path`, over all inputs.

    Raises:
        ValueError: there are no inputs.
    """
    model = onnx.load(path, load_external_data=False)
    floats = [v for v in (*model.graph.value_info, *model.graph.input, *model.graph.output)
              if v.type.tensor_type.elem_type == TensorProto.FLOAT]  # fmt: skip
    probes = {}
    for number, value in enumerate(floats):
        probe = f"range/{number}"
        probes[probe] = value.name
        model.graph.node.extend(
            [
                helper.make_node("Abs", [value.name], [f"{probe}/abs"]),
                helper.make_node("ReduceMax", [f"{probe}/abs"], [probe], keepdims=0),
            ]
        )
        model.graph.output.append(helper.make_tensor_value_info(probe, TensorProto.FLOAT, []))
    scanned = path.with_suffix(".ranges.onnx")
    onnx.save(model, scanned)
    try:
        options = ort.SessionOptions()
        options.log_severity_level = 3
        options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
        session = ort.InferenceSession(scanned, options, providers=["CPUExecutionProvider"])
    finally:
        scanned.unlink()
    ranges = dict.fromkeys(probes.values(), 0.0)
    num_runs = 0
    for feed in inputs:
        num_runs += 1
        for probe, value in zip(probes, session.run(list(probes), dict(feed)), strict=True):
            ranges[probes[probe]] = max(ranges[probes[probe]], float(np.abs(value)))
    if not num_runs:
        raise ValueError(f"{path}: no inputs to scan ranges on")
    return ranges


def leaves_float16(ranges: Mapping[str, float]) -> dict[str, float]:
    """The tensors that float16 cannot hold, with some headroom."""
    return {n: r for n, r in ranges.items() if not r * HEADROOM <= FLOAT16_MAX}
