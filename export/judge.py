"""Every verdict that an export depends on, each against something measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from export.audit import audit
from export.engines import Exported, with_parity
from export.gates import Gates, success_verdict, words_of
from export.measure import (
    Modules,
    golden_of,
    reference_actions,
    rounding,
    stage_errors,
    step_sensitivity,
)
from export.subject import Subject, observe
from quant.calibrate import calibrate
from quant.recipes import orin_bf16
from runtime.bundle import Manifest, read_bundle
from runtime.check import engine_errors, relative_error
from runtime.onnxruntime_engine import OnnxRuntimeBackend
from runtime.policy import ACTIONS, Policy

ROUNDING_FACTOR = 4.0
"""Times the error of rounding in linear layers that a lowered engine may have. It rounds at some
ten places where the measurement rounds at three, and errors of that number add as their root."""
JUDGED = 8
"""Observations, beside the golden one, on which the actions' error is measured."""
COVERAGE = 1.5
"""Times the range seen in calibration that the golden observation may reach in a layer whose input
is rounded to int8: what lies beyond is cut off."""
Stages = dict[str, dict[str, float]]


def allowed_parity(subject: Subject) -> dict[str, float]:
    """Per stage, how far an engine may be from its module before it is lowered."""
    floors = dict.fromkeys((s.name for s in subject.parts.graph.stages if s.engine), 0.0)
    if any(rule.format == "w8a8" for rule in subject.rules.values()):
        with rounding(subject.model, "float32", set()):
            floors = stage_errors(subject.parts, subject.tensors)
    tolerance = subject.recipe.tolerance
    return {stage: tolerance + ROUNDING_FACTOR * floor for stage, floor in floors.items()}


def judge_coverage(subject: Subject, gates: Gates) -> None:
    """Was calibration shown what the policy sees? The golden observation knows, if given."""
    if subject.config.golden is None:
        gates.verdicts["calibration"] = "not measured (--golden names an own episode)"
        return
    run = partial(reference_actions, subject.checkpoint, subject.golden)
    reached = calibrate(subject.checkpoint.model, [run])
    ratios = {
        name: reached[name].max / subject.statistics[name].max
        for name, rule in subject.rules.items()
        if rule.format == "w8a8" and name in reached
    }
    if not ratios:
        gates.verdicts["calibration"] = "not measured (no layer's input is rounded to int8)"
        return
    worst = max(ratios, key=lambda name: ratios[name])
    ratio = ratios[worst]
    gates.judge(
        "calibration",
        ratio <= COVERAGE,
        f"{len(subject.observations)} observations; the golden one reaches {ratio:.2f} times "
        "their range at most",
        f"the golden observation reaches {ratio:.2f} times the range that calibration saw in "
        f"{worst}, allowed {COVERAGE:g}: calibrate on the robot's own episodes and "
        f"instructions (--calibration, now {subject.config.calibration})",
    )


def judge_precisions(subject: Subject, gates: Gates, exported: Mapping[str, Exported]) -> None:
    """Is every layer in its file what the recipe says?"""
    wrong = audit(
        {engine: e.contents for engine, e in exported.items()},
        subject.layer_names,
        subject.rules,
        subject.recipe.base,
        _island_layers(exported),
    )
    gates.judge(
        "precision_audit",
        not wrong,
        f"{sum(len(e.contents.products) for e in exported.values())} weights",
        f"{len(wrong)} layers are not what recipe {subject.recipe.name} says: "
        + "; ".join(wrong[:3]),
    )


def judge_stages(subject: Subject, gates: Gates, exported: Mapping[str, Exported]) -> Stages:
    """What quantization does to every stage, against what bfloat16 would do to it."""
    exact = {n for n, r in orin_bf16().decide(subject.rules).items() if r.format == "float32"}
    with rounding(subject.checkpoint.model, "bfloat16", exact):
        floors = stage_errors(subject.exact, subject.exact_tensors)
    errors = stage_errors(subject.parts, subject.exact_tensors)
    steps = step_sensitivity(subject.parts, subject.exact, subject.exact_tensors)
    stages = {}
    for exporter in exported.values():
        for stage, parity in exporter.parity.items():
            allowed = subject.recipe.stage_error * floors[stage]
            stages[stage] = {
                "parity": parity,
                "error": errors[stage],
                "noise_floor": floors[stage],
                "allowed": allowed,
            } | ({"final": steps[stage]} if stage in steps else {})
            if subject.model is subject.checkpoint.model:
                continue
            gates.judge(
                "stage_error",
                errors[stage] <= allowed,
                f"each at most {subject.recipe.stage_error:g} times what bfloat16 does",
                f"recipe {subject.recipe.name} moves stage {stage!r} by {errors[stage]:.2e}, "
                f"allowed {allowed:.2e}: {subject.recipe.stage_error:g} times what bfloat16 does "
                "to it; a scale is wrong, or the recipe asks too much of this policy",
            )
    return stages


def judge_rounding(
    subject: Subject, gates: Gates, exported: Mapping[str, Exported], stages: Stages, twin: Path
) -> dict[str, Exported]:
    """What lowering did to every engine, against the same rounding in torch."""
    with rounding(subject.model, subject.recipe.base, _float32_layers(subject, exported)):
        floors = stage_errors(subject.parts, subject.tensors)
    result = {}
    for name, engine in exported.items():
        path = twin / engine.entry.file
        errors = engine_errors(OnnxRuntimeBackend(), path, subject.parts.graph, subject.tensors)
        result[name] = with_parity(engine, errors)
        for stage, error in errors.items():
            allowed = ROUNDING_FACTOR * floors[stage] + subject.recipe.tolerance
            stages[stage] |= {"rounding": error, "rounding_allowed": allowed}
            gates.judge(
                "rounding",
                error <= allowed and np.isfinite(error),
                f"{subject.recipe.base}, each at most {ROUNDING_FACTOR:g} times rounding in torch",
                f"engine {name}: lowering to {subject.recipe.base} moves stage {stage!r} by "
                f"{error:.2e}, allowed {allowed:.2e}",
            )
    return result


def allowed_in_chain(subject: Subject, exported: Mapping[str, Exported]) -> dict[str, float]:
    """Per tensor that an engine writes, and the actions: how far a bundle may be from the modules.

    What rounding in linear layers does to the tensor is measured: the first denoise step multiplies
    its error by 204, and no single number would suit it and the last.
    """
    stages = subject.parts.graph.stages
    written = [n for s in stages if s.engine for n in s.outputs.values()]
    allowed = dict.fromkeys([*written, ACTIONS], subject.recipe.chain_tolerance)
    if not subject.recipe.is_quantized:
        return allowed
    with rounding(subject.model, subject.recipe.base, _float32_layers(subject, exported)):
        moved = Modules(subject.checkpoint, subject.parts, subject.grid).tensors(subject.golden)
    return {
        name: tolerance + ROUNDING_FACTOR * relative_error(moved[name], subject.tensors[name])
        for name, tolerance in allowed.items()
    }


def judge_actions(
    subject: Subject, gates: Gates, runnable: Path, allowed: Mapping[str, float]
) -> float:
    """Run the whole bundle on the golden observation.

    Args:
        allowed: of every tensor, `allowed_in_chain`.

    Returns:
        Relative error of its actions against the float32 reference.
    """
    tensors = _run_bundle(runnable, subject.golden, tuple(allowed))
    parity = {n: relative_error(tensors[n], subject.tensors[n]) for n in allowed}
    worst = max(parity, key=lambda name: parity[name] / allowed[name])
    gates.judge(
        "graph_parity",
        parity[worst] <= allowed[worst] and np.isfinite(parity[worst]),
        f"actions {parity[ACTIONS]:.1e} of {allowed[ACTIONS]:.1e}",
        f"{worst!r} of the compiled policy differs from its modules' by {parity[worst]:.2e}, "
        f"allowed {allowed[worst]:.1e}, although every engine passed: a fault of the graph",
    )
    error = relative_error(tensors[ACTIONS], subject.golden[ACTIONS])
    errors, spreads = _compare_actions(subject, error)
    limit = _root_mean_square(spreads) / 2 if spreads else allowed[ACTIONS]
    mean = _root_mean_square(errors)
    gates.judge(
        "end_to_end",
        mean <= limit,
        f"{mean:.1e} of {limit:.1e}, {len(errors)} observations",
        f"recipe {subject.recipe.name} moves the actions by {mean:.2e}, allowed {limit:.1e}"
        + (": half of what another noise seed moves them" * subject.recipe.is_quantized),
    )
    return error


def judge_success(subject: Subject, gates: Gates, manifest: Manifest) -> None:
    verdict = success_verdict(subject.config.verdicts, manifest.content_sha256)
    if not subject.recipe.is_quantized:
        return
    if verdict is None:
        gates.verdicts["success"] = "not measured (make gate measures the demo's recipes)"
        return
    gates.judge(
        "success",
        verdict["low"] > -subject.recipe.success_margin,
        words_of(verdict),
        f"recipe {subject.recipe.name} costs success: {words_of(verdict)}, allowed "
        f"{-100 * subject.recipe.success_margin:.0f}",
    )


def _island_layers(exported: Mapping[str, Exported]) -> set[str]:
    return {layer for engine in exported.values() for layer in engine.island_layers}


def _float32_layers(subject: Subject, exported: Mapping[str, Exported]) -> set[str]:
    """By the recipe, or because float16 cannot hold what they compute."""
    chosen = {name for name, rule in subject.rules.items() if rule.format == "float32"}
    return chosen | _island_layers(exported)


def _compare_actions(subject: Subject, golden_error: float) -> tuple[list[float], list[float]]:
    """Relative errors of the actions, and what another noise seed does to them.

    On the golden observation by the runtime, on others by the quantized modules: frames that
    calibration left out, but for the first of an episode.
    """
    if not subject.recipe.is_quantized:
        return [golden_error], []
    exact = Modules(subject.checkpoint, subject.exact, subject.grid)
    quantized = Modules(subject.checkpoint, subject.parts, subject.grid)
    errors, spreads = [golden_error], [exact.noise_spread(subject.golden)]
    others = observe(
        subject.config,
        subject.recipe,
        subject.checkpoint.config.head.state_dim,
        stride=subject.config.stride + 1,
        limit=JUDGED,
    )
    for seed, seen in enumerate(others):
        golden = golden_of(subject.checkpoint, seen, seed=seed)
        errors.append(relative_error(quantized.actions(golden), exact.actions(golden)))
        spreads.append(exact.noise_spread(golden))
    return errors, spreads


def _run_bundle(
    folder: Path, golden: Mapping[str, NDArray[Any]], names: Sequence[str]
) -> dict[str, NDArray[Any]]:
    """Tensors of the golden observation, by the runtime."""
    policy = Policy(read_bundle(folder), str(golden["robot"]), OnnxRuntimeBackend())
    episode = policy.start(anchor=golden["anchor"], instruction=str(golden["instruction"]))
    episode.act(golden["frame"], golden["state"], noise=golden["noise"])
    return {name: policy.memory.host(name).copy() for name in names}


def _root_mean_square(values: list[float]) -> float:
    return float(np.sqrt(np.mean(np.square(values))))
