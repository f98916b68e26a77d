"""Every verdict that an export depends on, each against something measured."""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from msgspec.structs import replace
from numpy.typing import NDArray

from export.engines.audit import audit
from export.engines.engine import Exported, with_parity
from export.engines.resident import ResidentBackend
from export.gates import Gates, closed_loop_verdict, motion_words, moves_well, words_of
from export.kept import digest_of
from export.measure import (
    Modules,
    errors_in,
    rounding,
    stage_errors,
    step_sensitivity,
)
from export.subject import Judged, Subject
from models.declared import DENOISED
from models.families import family_of
from models.split import Split
from models.stored import SHELF
from quant.recipes import Rule, orin_bf16
from runtime.backends.onnxruntime import OnnxRuntimeBackend
from runtime.backends.parity import engine_errors, relative_error
from runtime.bundle import Manifest, StageFigures, Verdict, read_bundle
from runtime.declarations import from_source
from runtime.golden import Golden
from runtime.policy import Policy
from runtime.storage.trust import anybody

ROUNDING_FACTOR = 4.0
"""Times the error of rounding in linear layers that a lowered engine may have. It rounds at some
ten places where the measurement rounds at three, and errors of that number add as their root."""
COVERAGE = 1.5
"""Times the range seen in calibration that a held-out observation may reach in a layer whose input
is rounded to int8 by one step for all tokens: what lies beyond is cut off. Counted after smoothing,
which makes channels that calibration saw little of as large as others."""
FOLDING = 1e-3
"""Of the actions, by folding alone: float32 rounding of each weight that took a factor, taken 204
times by the first denoise step. A factor in the wrong place is 1e-2 and more."""
SPLIT = 1e-4
"""Of the actions, by cutting alone: the same sums in another order."""
GOLDEN = "the golden actions"
Stages = dict[str, StageFigures]
Shown = Sequence[Mapping[str, NDArray[Any]]]
"""All tensors of the float32 policy, for each observation."""


def allowed_parity(subject: Subject) -> dict[str, float]:
    """Per stage, how far an engine may be from its module before it is lowered."""
    floors = dict.fromkeys((s.name for s in subject.parts.graph.stages if s.engine), 0.0)
    if any(rule.format == "w8a8" for rule in subject.rules.values()):
        floors = subject.kept.figures("jitter", lambda: _rounded(subject, "float32", set()))
    tolerance = subject.recipe.tolerance
    return {stage: tolerance + ROUNDING_FACTOR * floor for stage, floor in floors.items()}


def judge_coverage(subject: Subject, gates: Gates) -> None:
    """Was calibration shown what the policy sees?"""
    rounded = [
        name
        for name, rule in subject.rules.items()
        if rule.format == "w8a8" and rule.method != "tokens"
    ]
    ratios = {
        (seen.where, name): seen.reached[name] / subject.statistics[name].max
        for seen in subject.judged
        for name in rounded
        if name in seen.reached
    }
    if not ratios:
        gates.judge(
            "calibration", True, "no layer's input is rounded to a step of calibration's", ""
        )
        return
    where, layer = worst = max(ratios, key=lambda key: ratios[key])
    ratio, shown = ratios[worst], len(subject.evidence.calibration)
    gates.judge(
        "calibration",
        ratio <= COVERAGE,
        f"{ratio:.2f} of {COVERAGE:g} times the range that {shown} observations showed, reached by "
        f"{_judged_words(subject)}",
        f"{where} reaches {ratio:.2f} times the range that {shown} observations showed {layer} in "
        f"calibration, allowed {COVERAGE:g}: calibrate on more of the robot's own episodes and "
        f"instructions (--calibration, now {subject.config.calibration})",
        unproven=subject.evidence.unproven,
    )


def judge_split(subject: Subject, gates: Gates) -> None:
    """Cut into stages, and made ready for its formats, does the float32 policy compute what it does
    in one plain pass that knows nothing of stages?"""
    error = relative_error(subject.exact_tensors[DENOISED], subject.golden[DENOISED])
    if subject.statistics:
        gates.judge(
            "folding",
            bool(error <= FOLDING),
            f"{subject.num_folded} layers, actions {error:.1e} of {FOLDING:.0e}",
            f"folding factors into the weights of recipe {subject.recipe.name} moves the float32 "
            f"actions by {error:.2e}, allowed {FOLDING:.0e}: a fault of quant.fold, quant.sites or "
            "the graph",
        )
        return
    gates.judge(
        "split",
        bool(error <= SPLIT),
        f"actions {error:.1e} of {SPLIT:.0e}",
        f"cut into stages, the float32 policy's actions are {error:.2e} from those of one plain "
        f"pass, allowed {SPLIT:.0e}: a fault of the graph or of a host function",
    )


def judge_precisions(subject: Subject, gates: Gates, exported: Mapping[str, Exported]) -> None:
    """Is every layer in its file what the recipe says?"""
    names, rules, config = subject.layer_names, dict(subject.rules), subject.checkpoint.config
    for engine, spec in subject.parts.engines.items():
        for buffer in spec.fixed:
            names[engine][buffer] = f"{engine}.{buffer}"
            rules[f"{engine}.{buffer}"] = Rule(f"{engine}.{buffer}", "float32")
    wrong = audit(
        {engine: e.contents for engine, e in exported.items()},
        names,
        rules,
        subject.recipe.base,
        _island_layers(exported),
        {layer.name for layer in family_of(config).folded_layers(config)},
    )
    gates.judge(
        "precision_audit",
        not wrong,
        f"{sum(len(e.contents.products) for e in exported.values())} weights",
        f"{len(wrong)} layers are not what recipe {subject.recipe.name} says: "
        + "; ".join(wrong[:3]),
    )


def judge_stages(subject: Subject, gates: Gates) -> Stages:
    """What quantization does to every stage, against what bfloat16 would do to it."""
    shown = [seen.tensors for seen in subject.judged]
    golden = next((n for n, seen in enumerate(subject.judged) if seen.is_golden), len(shown))
    if golden == len(shown):
        shown.append(subject.exact_tensors)
    floors = _bfloat16_floors(subject, shown)
    found = worst_stages(subject, floors)
    steps = subject.kept.figures(
        "steps", lambda: step_sensitivity(subject.parts, subject.exact, subject.exact_tensors)
    )
    factor = f"{subject.recipe.stage_error:g} times what bfloat16 does"
    stages: Stages = {}
    for stage, worst in found.items():
        stages[stage] = replace(worst, noise_floor=floors[stage][golden], final=steps.get(stage))
        if subject.model is subject.checkpoint.model:
            continue
        gates.judge(
            "stage_error",
            worst.error <= worst.allowed,
            f"each at most {factor}, {_judged_words(subject)}",
            f"recipe {subject.recipe.name} moves stage {stage!r} by {worst.error:.2e}, allowed "
            f"{worst.allowed:.2e}: {factor} to it ({worst.where}); a scale is wrong, or the "
            "recipe asks too much of this policy",
            unproven=subject.evidence.unproven,
        )
    return stages


def worst_stages(subject: Subject, floors: Mapping[str, Sequence[float]] | None = None) -> Stages:
    """Per stage `error`, what is `allowed`, and `where`: the observation nearest to the limit.

    Args:
        floors: per stage, what bfloat16 does to it on each observation; measured by default.
    """
    shown = [seen.tensors for seen in subject.judged]
    floors = floors or _bfloat16_floors(subject, shown)
    errors = _of_engines(subject, "errors", subject.parts, shown)
    factor = subject.recipe.stage_error
    return {
        stage: max(
            (
                StageFigures(
                    noise_floor=floor, error=error, allowed=factor * floor, where=seen.where
                )
                for seen, floor, error in zip(
                    subject.judged, floors[stage], errors[stage], strict=False
                )
            ),
            key=lambda figures: _share(figures.error, figures.allowed),
        )
        for stage in errors
    }


def _bfloat16_floors(subject: Subject, shown: Shown) -> dict[str, list[float]]:
    """Per stage, what bfloat16 does to it on each of `shown`."""
    with rounding(subject.checkpoint.model, "bfloat16", _exact_in_bfloat16(subject)):
        return _of_engines(subject, "bfloat16", subject.exact, shown)


def _exact_in_bfloat16(subject: Subject) -> set[str]:
    """Layers that the base recipe leaves in float32."""
    rules = orin_bf16().decide(subject.rules)
    return {name for name, rule in rules.items() if rule.format == "float32"}


def _of_engines(subject: Subject, what: str, parts: Split, shown: Shown) -> dict[str, list[float]]:
    """`errors_in` of all engines, each kept as it is done."""
    name = f"{what} on {[digest_of(tensors) for tensors in shown]}"
    found: dict[str, list[float]] = {}
    for engine in parts.engines:
        make = partial(_as_arrays, engine, parts, shown)
        kept = subject.kept.arrays(f"{name} in {engine}", make)
        found |= {stage: errors.tolist() for stage, errors in kept.items()}
    return {s.name: found[s.name] for s in parts.graph.stages if s.engine}


def _as_arrays(engine: str, parts: Split, shown: Shown) -> dict[str, NDArray[np.float64]]:
    return {stage: np.array(errors) for stage, errors in errors_in(engine, parts, shown).items()}


def _rounded(subject: Subject, base: str, exact: set[str]) -> dict[str, float]:
    """Per stage, what rounding to `base` does to the quantized modules."""
    with rounding(subject.model, base, exact):
        return stage_errors(subject.parts, subject.tensors)


def _share(error: float, allowed: float) -> float:
    """Of what is allowed."""
    if not allowed:
        return math.inf if error else 0.0
    return error / allowed


def judge_rounding(
    subject: Subject, gates: Gates, exported: Mapping[str, Exported], stages: Stages, twin: Path
) -> dict[str, Exported]:
    """What lowering did to every engine, against the same rounding in torch."""
    base, exact = subject.recipe.base, _float32_layers(subject, exported)
    floors = subject.kept.figures("rounding", lambda: _rounded(subject, base, exact))
    SHELF.clear()  # room for the engines
    result = {}
    for name, engine in exported.items():
        path = twin / engine.entry.file
        errors = subject.kept.figures(f"rounding of {name}", partial(_engine_errors, path, subject))
        result[name] = with_parity(engine, errors)
        for stage, error in errors.items():
            allowed = ROUNDING_FACTOR * floors[stage] + subject.recipe.tolerance
            stages[stage] = replace(stages[stage], rounding=error, rounding_allowed=allowed)
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
    written = subject.parts.graph.engine_outputs
    allowed = dict.fromkeys([*written, DENOISED], subject.recipe.chain_tolerance)
    if not subject.recipe.is_quantized:
        return allowed

    def moved() -> dict[str, float]:
        with rounding(subject.model, subject.recipe.base, _float32_layers(subject, exported)):
            tensors = Modules(subject.checkpoint, subject.parts).tensors(subject.golden)
        return {name: relative_error(tensors[name], subject.tensors[name]) for name in allowed}

    errors = subject.kept.figures("rounding in chain", moved)
    return {name: allowed[name] + ROUNDING_FACTOR * errors[name] for name in allowed}


def judge_actions(
    subject: Subject, gates: Gates, runnable: Path, allowed: Mapping[str, float]
) -> float:
    """Run the whole bundle on the golden observation.

    Args:
        allowed: of every tensor, `allowed_in_chain`.

    Returns:
        Relative error of its actions against the float32 reference.
    """
    with contextlib.ExitStack() as stack:

        @functools.cache
        def policy() -> Policy:
            SHELF.clear()  # the modules have run: their weights make room for the engines'
            return stack.enter_context(contextlib.closing(_open_bundle(runnable, subject)))

        def of_golden() -> dict[str, float]:
            tensors = _run_bundle(policy(), subject.golden, tuple(allowed))
            found = {n: relative_error(tensors[n], subject.tensors[n]) for n in allowed}
            return found | {GOLDEN: relative_error(tensors[DENOISED], subject.golden[DENOISED])}

        def of_judged(seen: Judged) -> dict[str, float]:
            actions = _run_bundle(policy(), seen.inputs, (DENOISED,))[DENOISED]
            return {DENOISED: relative_error(actions, seen.tensors[DENOISED])}

        parity = subject.kept.figures("bundle", of_golden)
        error = parity.pop(GOLDEN)
        errors = [
            subject.kept.figures(f"bundle on {digest_of(s.inputs)}", partial(of_judged, s))[
                DENOISED
            ]
            for s in subject.judged
        ]
    worst = max(parity, key=lambda name: parity[name] / allowed[name])
    gates.judge(
        "graph_parity",
        parity[worst] <= allowed[worst] and np.isfinite(parity[worst]),
        f"actions {parity[DENOISED]:.1e} of {allowed[DENOISED]:.1e}",
        f"{worst!r} of the compiled policy differs from its modules' by {parity[worst]:.2e}, "
        f"allowed {allowed[worst]:.1e}, although every engine passed: a fault of the graph",
    )
    judge_end_to_end(subject, gates, errors, allowed[DENOISED])
    return error


def judge_end_to_end(
    subject: Subject, gates: Gates, errors: Sequence[float], tolerance: float
) -> None:
    """How far the actions are from float32's, root mean square over the observations.

    Args:
        errors: of the bundle's actions, relative, one per observation that is judged by.
        tolerance: allowed where nothing is quantized; otherwise half of what another seed does, or
            where nothing is drawn as many times what bfloat16 does as a stage is allowed.
    """
    recipe, limit, words = subject.recipe, tolerance, ""
    if recipe.is_quantized and from_source(subject.parts.graph.inputs, "drawn"):
        limit = _root_mean_square([seen.spread for seen in subject.judged]) / 2
        words = ": half of what another noise seed moves them"
    elif recipe.is_quantized:
        limit += (
            recipe.stage_error
            * subject.kept.figures(
                "actions in bfloat16", lambda: {DENOISED: _bfloat16_actions(subject)}
            )[DENOISED]
        )
        words = f": {recipe.stage_error:g} times what bfloat16 does, and rounding"
    mean = _root_mean_square(errors)
    gates.judge(
        "end_to_end",
        mean <= limit,
        f"{mean:.1e} of {limit:.1e}, {_judged_words(subject)}",
        f"recipe {recipe.name} moves the actions by {mean:.2e}, allowed {limit:.1e}{words}",
        unproven=subject.evidence.unproven,
    )


def _bfloat16_actions(subject: Subject) -> float:
    """What bfloat16 alone does to the golden actions."""
    exact = _exact_in_bfloat16(subject)
    with rounding(subject.checkpoint.model, "bfloat16", exact):
        rounded = Modules(subject.checkpoint, subject.exact).actions(subject.golden)
    return relative_error(rounded, subject.exact_tensors[DENOISED])


def judge_closed_loop(subject: Subject, gates: Gates, manifest: Manifest) -> None:
    """Success and motion, where `make gate` measured them for this bundle."""
    verdict = closed_loop_verdict(subject.config.verdicts, manifest.content_sha256)
    if not subject.recipe.is_quantized:
        return
    unmeasured = Verdict(kind="not measured", figures="make gate measures the demo's recipes")
    if verdict is None:
        gates.verdicts |= {"success": unmeasured, "motion": unmeasured}
        return
    gates.judge(
        "success",
        verdict["low"] > -subject.recipe.success_margin,
        words_of(verdict),
        f"recipe {subject.recipe.name} costs success: {words_of(verdict)}, allowed "
        f"{-100 * subject.recipe.success_margin:.0f}",
    )
    motion = verdict.get("motion")  # older files have none
    if motion is None:
        gates.verdicts["motion"] = unmeasured
        return
    gates.judge(
        "motion",
        moves_well(motion),
        motion_words(motion),
        f"recipe {subject.recipe.name} moves the robot worse: {motion_words(motion)}",
    )


def _island_layers(exported: Mapping[str, Exported]) -> set[str]:
    return {layer for engine in exported.values() for layer in engine.island_layers}


def _float32_layers(subject: Subject, exported: Mapping[str, Exported]) -> set[str]:
    """By the recipe, or because float16 cannot hold what they compute."""
    chosen = {name for name, rule in subject.rules.items() if rule.format == "float32"}
    return chosen | _island_layers(exported)


def _judged_words(subject: Subject) -> str:
    """By how many observations, and of what kind."""
    count = len(subject.judged)
    kind = "held-out " if subject.evidence.held_out_by else ""
    if subject.evidence.golden is None:
        kind = "made-up "
    return f"{count} {kind}observation{'s' * (count != 1)}"


def _engine_errors(path: Path, subject: Subject) -> dict[str, float]:
    """Per stage that calls the engine of a file."""
    return engine_errors(OnnxRuntimeBackend(), path, subject.parts.graph, subject.tensors)


def _open_bundle(folder: Path, subject: Subject) -> Policy:
    return Policy(
        read_bundle(folder, verify=anybody), str(subject.golden["embodiment"]), ResidentBackend()
    )


def _run_bundle(
    policy: Policy, inputs: Mapping[str, NDArray[Any]], names: Sequence[str]
) -> dict[str, NDArray[Any]]:
    """Tensors of an observation, by the runtime; leaves are asked for."""
    golden = Golden.from_arrays(policy.graph, inputs)
    episode = policy.start(**golden.given)
    episode.recall(golden.recalled)
    episode.act({**golden.observed, **golden.drawn})
    for leaf in policy.graph.outputs:
        episode.ask(leaf)
    return {name: policy.memory.host(name).copy() for name in names}


def _root_mean_square(values: Sequence[float]) -> float:
    return float(np.sqrt(np.mean(np.square(values))))
