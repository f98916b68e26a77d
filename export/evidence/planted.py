"""Faults planted in finished bundles: which of them does success notice, and which does motion?

The fault is a static scale of an input that is wrong by a factor, as calibration on another robot
or on pixels of another range leaves it. It is planted in the files, so that it needs nothing of how
a recipe came to its scales, and none of the export's other gates is in its way.
"""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from msgspec.structs import replace
from onnx import numpy_helper

from export.config import PLANTED, PlantedConfig
from export.destination import exclusive, publish, temporary
from export.engines.onnx_file import save
from export.errors import ExportError
from export.evidence.gate import build_demo, in_pairs, keeps_success, runnable
from export.gates import motion_words, moves_well, words_of
from runtime.bundle import MANIFEST, FileEntry, read_bundle
from runtime.storage.files import Kind, check_output, write_file
from runtime.storage.listed import sha256_of

PLANTED_FILE = Kind("a file of planted faults", (b'"faults"', b'"caught_by"'))


@dataclass(frozen=True, kw_only=True, slots=True)
class Fault:
    """What is wrong with a bundle."""

    words: str
    recipe: str
    factor: float
    """Times what they should be are the static scales of inputs."""
    engines: tuple[str, ...] = ()
    """In these engines; in all by default."""
    must_fail: bool = True
    """Whether the motion gate has to catch it."""


FAULTS = (
    Fault(words="nothing planted", recipe="cpu-int8", factor=1.0, must_fail=False),
    Fault(words="input scales 4 times too large", recipe="cpu-int8", factor=4.0),
    Fault(words="input scales 4 times too small", recipe="cpu-int8", factor=0.25),
    Fault(words="input scales twice too large", recipe="cpu-int8", factor=2.0, must_fail=False),
    Fault(
        words="input scales of the denoise loop 4 times too large",
        recipe="cpu-int8",
        factor=4.0,
        engines=("denoise",),
        must_fail=False,
    ),
    Fault(words="input scales 4 times too large", recipe="orin-w8a8", factor=4.0),
)


def planted(config: PlantedConfig) -> int:
    """Run them all.

    Returns:
        0, or 1 if the motion gate passes a fault that it has to catch.
    """
    path = config.results / PLANTED
    check_output(path, PLANTED_FILE)
    recipes = {fault.recipe for fault in FAULTS}
    exact, *healthy = (build_demo(config.work, name) for name in ("float32", *sorted(recipes)))
    ran = {read_bundle(b).manifest.recipe.name: runnable(config.work, b) for b in healthy}
    found: list[dict[str, Any]] = []
    for number, fault in enumerate(FAULTS):
        faulty = plant(ran[fault.recipe], config.work / f"fault{number}", fault)
        verdict = in_pairs(config, exact, faulty)
        passes = {
            "success": keeps_success(fault.recipe, verdict),
            "motion": moves_well(verdict["motion"]),
        }
        caught_by = [gate for gate, passed in passes.items() if not passed]
        found.append({"fault": asdict(fault), "caught_by": caught_by} | verdict)
        write_file(path, json.dumps({"faults": found}, indent=1) + "\n", PLANTED_FILE)
        print(
            f"{fault.words}, {fault.recipe}: caught by {' and '.join(caught_by) or 'nothing'}; "
            f"{words_of(verdict)}; {motion_words(verdict['motion'])}",
            flush=True,
        )
    missed = [f for f in found if f["fault"]["must_fail"] and "motion" not in f["caught_by"]]
    if missed:
        print(f"error: the motion gate missed {len(missed)} of {len(FAULTS)}", file=sys.stderr)
    return 1 if missed else 0


def plant(bundle: Path, out: Path, fault: Fault) -> Path:
    """Write the bundle with the fault in it; its manifest believes in it.

    Raises:
        BundleError: the bundle is damaged.
        ExportError: the engines have no static scale of an input.
        OutputError: the destination cannot be written, or is something else than a bundle.
    """
    manifest = read_bundle(bundle).manifest
    files, num_scales = dict(manifest.files), 0
    with exclusive(out), temporary(out) as folder:
        shutil.copytree(bundle, folder, dirs_exist_ok=True)
        for name in fault.engines or manifest.engines:
            model = onnx.load(bundle / manifest.engines[name].file)
            num_scales += _scale_inputs(model, fault.factor)
            for path in save(model, folder / manifest.engines[name].file).files:
                entry = FileEntry(sha256=sha256_of(path), bytes=path.stat().st_size)
                files[path.relative_to(folder).as_posix()] = entry
        if not num_scales:
            raise ExportError(f"{bundle}: no input of {fault.engines or 'any engine'} has a scale")
        (folder / MANIFEST).write_bytes(replace(manifest, files=files).to_json())
        publish(folder, out)
    return out


def _scale_inputs(model: onnx.ModelProto, factor: float) -> int:
    """Multiply every scale by which something that is no weight becomes int8; returns how many."""
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    scales = {
        node.input[1]
        for node in model.graph.node
        if node.op_type == "QuantizeLinear" and node.input[0] not in constants
    }
    for name in scales:
        value = numpy_helper.to_array(constants[name])
        changed = np.asarray(value * value.dtype.type(factor))
        constants[name].CopyFrom(numpy_helper.from_array(changed, name))
    return len(scales)
