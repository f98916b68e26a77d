"""The policy that is exported, in float32 and in the recipe's precision, and what it was shown."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from export.config import BuildConfig
from export.destination import CALIBRATION
from export.held_out import Evidence, gather
from export.kept import Kept, digest_of
from export.measure import Modules, golden_of, made_up, reference_actions
from export.parts import EngineSizes, choose_layers, smaller, tracing_layers
from export.tokens import Tokens, choose_tokens
from models.checkpoint import Checkpoint, normalizations
from models.declared import ACTIONS, DENOISED
from models.families import family_of
from models.networks.parts import LayersPerPart
from models.policy_config import PolicyConfig
from models.split import Split
from quant.apply import decide, prepare_folded, quantize_folded
from quant.boards import find_board
from quant.calibrate import Statistics, calibrate
from quant.data.episode import Observation
from quant.data.observations import misfit
from quant.fold import Folded
from quant.recipes import Recipe, Rule
from runtime.image import grid_of
from runtime.normalization import medoid

TENSOR, REACHED, SPREAD = "tensor/", "reached/", "spread"
"""What a run of the float32 policy leaves; two of them stand before other names."""
SCANNED = 8
"""Observations of which the ranges are looked at, beside the golden one."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Judged:
    """One observation that gates are judged by, and what float32 makes of it."""

    where: str
    inputs: Mapping[str, NDArray[Any]]
    """As `export.measure.golden_of` says."""
    tensors: Mapping[str, NDArray[Any]]
    """Of the float32 policy."""
    reached: Mapping[str, float]
    """Largest magnitude that flowed into each linear layer that ran for it."""
    spread: float
    """How far other noise moves its actions, relative; 0 where nothing leaves float32."""
    is_golden: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Subject:
    """Made by `prepare`."""

    config: BuildConfig
    recipe: Recipe
    checkpoint: Checkpoint
    """Its policy is folded for the recipe (`quant.fold`): it computes what the one in the folder
    does, and is what everything is measured against."""
    rules: Mapping[str, Rule]
    """Of every layer of the policy."""
    tokens: Tokens
    evidence: Evidence
    judged: tuple[Judged, ...]
    """At least one: the golden observation where there are no episodes."""
    statistics: Mapping[str, Statistics]
    """Of the layers' inputs; none where nothing is quantized."""
    num_folded: int
    """Layers whose smoothing costs nothing when the policy runs."""
    model: nn.Module
    """In the recipe's formats."""
    exact: Split
    """The float32 policy."""
    parts: Split
    """`model`; the same object as `exact` where nothing is quantized."""
    golden: Mapping[str, NDArray[Any]]
    """The golden observation and the float32 reference's actions."""
    exact_tensors: Mapping[str, NDArray[Any]]
    """Of `exact` on the golden observation."""
    tensors: Mapping[str, NDArray[Any]]
    """Of `parts` on it."""
    kept: Kept
    """What was worked out about them."""

    @property
    def layer_names(self) -> dict[str, dict[str, str]]:
        """Per engine, path of a module in it -> its name in the policy."""
        names = {id(module): name for name, module in self.model.named_modules()}
        return {
            engine: {
                path: names[id(module)]
                for path, module in spec.module.named_modules()
                if id(module) in names
            }
            for engine, spec in self.parts.engines.items()
        }


def prepare(
    config: BuildConfig,
    recipe: Recipe,
    checkpoint: Checkpoint,
    step: Callable[[str], None] = lambda name: None,
    *,
    work: Path | None = None,
) -> Subject:
    """Calibrate, quantize, split, and run both policies on the golden observation.

    Args:
        step: is told what begins.
        work: a folder for what takes long, which is taken from there if it was made already;
            without one nothing is kept, and codes are in memory.

    Raises:
        ExportError: there are no observations to calibrate on.
        ValueError: the recipe does not fit the policy.
    """
    rules = decide(recipe, checkpoint.model)
    grid = grid_of(config.image_size[1], config.image_size[0], checkpoint.image)
    step("read the episodes")
    evidence = gather(config, recipe, partial(_wrong_with, checkpoint, config))
    tokens = choose_tokens(checkpoint, grid, evidence.instructions, config.tokens)
    layers = choose_parts(config, recipe, checkpoint.config)
    kept = Kept(
        work, *_policy(checkpoint), recipe, layers, tokens.slots, config.image_size,
        config.resize_on, config.samples, config.compile_check,
        _digest_of_all(checkpoint, evidence.calibration),
    )  # fmt: skip
    cut = partial(
        family_of(checkpoint.config).split,
        parts=checkpoint.parts,
        image=checkpoint.image,
        image_size=config.image_size,
        slots=tokens.slots,
        layers=layers,
        resize_on=config.resize_on,
        samples=config.samples,
    )
    step("run in float32")
    golden = golden_of(
        checkpoint,
        evidence.golden or made_up(checkpoint, config.image_size),
        seed=0,
        samples=config.samples,
    )
    golden |= kept.arrays(
        f"reference on {digest_of(golden)}",
        lambda: {DENOISED: reference_actions(checkpoint, golden)},
    )
    golden[ACTIONS] = _chosen(checkpoint, golden)
    is_quantized = any(rule.format not in ("float32", "float") for rule in rules.values())
    folded = Folded(checkpoint.model, {}, {})
    if is_quantized:
        step(f"calibrate on {len(evidence.calibration)} observations")
        statistics = _calibrate(work, checkpoint, evidence.calibration)
        step("fold")
        folded = prepare_folded(checkpoint.model, recipe, statistics)
        del statistics  # as large as what replaces them
        checkpoint = replace(checkpoint, model=folded.model)
    parts = exact = cut(checkpoint.model)
    modules = Modules(checkpoint, exact)
    shown = digest_of(golden)
    step(f"run in float32 on {len(evidence.judged) or 1} observations")
    judged = _judge_by(
        checkpoint, evidence, modules, golden, kept, recipe.is_quantized, config.samples
    )
    tensors = exact_tensors = next(
        (seen.tensors for seen in judged if seen.is_golden), None
    ) or kept.arrays(f"exact on {shown}", lambda: modules.tensors(golden))
    model = checkpoint.model
    if is_quantized:
        step("round the weights")
        model = quantize_folded(folded, recipe, work)
        parts = cut(model)
        quantized = Modules(checkpoint, parts)
        tensors = kept.arrays(f"quantized on {shown}", lambda: quantized.tensors(golden))
    return Subject(
        config=config,
        recipe=recipe,
        checkpoint=checkpoint,
        rules=rules,
        tokens=tokens,
        evidence=evidence,
        judged=judged,
        statistics=folded.statistics,
        num_folded=folded.num_folded,
        model=model,
        exact=exact,
        parts=parts,
        golden=golden,
        exact_tensors=exact_tensors,
        tensors=tensors,
        kept=kept,
    )


def choose_parts(config: BuildConfig, recipe: Recipe, policy: PolicyConfig) -> LayersPerPart:
    """That one engine holds at most: for its board, and for it to be exported at all."""
    limit = find_board(config.board).largest_engine_bytes if config.board else None
    sizes = EngineSizes(policy, recipe)
    asked = choose_layers(sizes, per_part=config.layers_per_part, limit=limit)
    return smaller(asked, tracing_layers(policy))


def _wrong_with(checkpoint: Checkpoint, config: BuildConfig, seen: Observation) -> str | None:
    """Why this policy cannot take an observation."""
    return misfit(checkpoint.inputs(config.image_size), seen)


def _judge_by(
    checkpoint: Checkpoint,
    evidence: Evidence,
    modules: Modules,
    golden: Mapping[str, NDArray[Any]],
    kept: Kept,
    with_spread: bool,
    samples: int,
) -> tuple[Judged, ...]:
    """Run the float32 policy on what gates are judged by, and watch its linear layers."""
    run = partial(_run, checkpoint, modules, kept, with_spread)
    found: list[Judged] = []
    for number, seen in enumerate(evidence.judged):
        is_golden = seen is evidence.golden
        inputs = golden if is_golden else golden_of(checkpoint, seen, seed=number, samples=samples)
        found.append(run(seen.where, inputs, is_golden))
    return tuple(found) or (run("the golden observation", golden, True),)


def _chosen(checkpoint: Checkpoint, golden: Mapping[str, NDArray[Any]]) -> NDArray[np.float32]:
    """[T, A], of several samples the one that is carried out."""
    denoised, embodiment = golden[DENOISED], str(golden["embodiment"])
    if denoised.ndim == 2:
        return denoised
    _, mapping = normalizations(checkpoint.config, checkpoint.statistics[embodiment], embodiment)
    return medoid(denoised, mapping)[0]


def _run(
    checkpoint: Checkpoint,
    modules: Modules,
    kept: Kept,
    with_spread: bool,
    where: str,
    inputs: Mapping[str, NDArray[Any]],
    is_golden: bool,
) -> Judged:
    def run() -> dict[str, NDArray[Any]]:
        tensors: dict[str, NDArray[Any]] = {}
        modules.forget()  # so that every layer runs and is seen
        seen = calibrate(checkpoint.model, [lambda: tensors.update(modules.tensors(inputs))])
        found = {f"{TENSOR}{name}": value for name, value in tensors.items()}
        if with_spread:  # now, while all that does not depend on the noise is there
            found[SPREAD] = np.array(modules.noise_spread(inputs))
        return found | {f"{REACHED}{name}": np.array(s.max) for name, s in seen.items()}

    made = kept.arrays(f"float32 on {digest_of(inputs)}", run)
    tensors, reached = (
        {name.removeprefix(kind): a for name, a in made.items() if name.startswith(kind)}
        for kind in (TENSOR, REACHED)
    )
    return Judged(
        where=where,
        inputs=inputs,
        tensors=tensors,
        reached={name: float(value) for name, value in reached.items()},
        spread=float(made[SPREAD]) if with_spread else 0.0,
        is_golden=is_golden,
    )


def scanned_tensors(subject: Subject) -> list[dict[str, NDArray[Any]]]:
    """All tensors on some observations, for the range scan; none where nothing can overflow."""
    if subject.recipe.base != "float16":
        return []
    stride = max(1, len(subject.evidence.calibration) // SCANNED)
    chosen = subject.evidence.calibration[::stride][:SCANNED]
    modules = Modules(subject.checkpoint, subject.parts)
    return [
        modules.tensors(
            golden_of(subject.checkpoint, seen, seed=number, samples=subject.config.samples)
        )
        for number, seen in enumerate(chosen)
    ]


def _calibrate(
    work: Path | None, checkpoint: Checkpoint, observations: tuple[Observation, ...]
) -> Mapping[str, Statistics]:
    """Kept in a file now and then: a run that is cut off resumes."""
    runs = [
        partial(reference_actions, checkpoint, golden_of(checkpoint, seen, seed=number))
        for number, seen in enumerate(observations)
    ]
    keep = None if work is None else work / CALIBRATION
    key = repr((*_policy(checkpoint), _digest_of_all(checkpoint, observations)))
    return calibrate(
        checkpoint.model, runs, keep=keep, key=hashlib.sha256(key.encode()).hexdigest()
    )


def _policy(checkpoint: Checkpoint) -> tuple[object, ...]:
    """All that what it computes depends on."""
    return (
        checkpoint.sha256,
        checkpoint.config,
        checkpoint.image,
        sorted(checkpoint.statistics.items()),
        hashlib.sha256(checkpoint.tokenizer.to_str().encode()).hexdigest(),
    )


def _digest_of_all(checkpoint: Checkpoint, observations: Sequence[Observation]) -> str:
    """Of all that the policy is shown of them, the past included."""
    digest = hashlib.sha256()
    for seen in observations:
        digest.update(digest_of(golden_of(checkpoint, seen, seed=0)).encode())
    return digest.hexdigest()
