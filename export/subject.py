"""The policy that is exported, in float32 and in the recipe's precision, and what it was shown."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from export.config import BuildConfig
from export.errors import ExportError
from export.measure import Modules, golden_of, make_golden, reference_actions
from models.anchorvla4d import AnchorVLA4D
from models.checkpoint import Checkpoint
from models.split import Split, split
from quant.apply import decide, quantize
from quant.calibrate import Statistics, calibrate
from quant.observations import Observation, read_observations
from quant.recipes import Recipe, Rule
from runtime.image import grid_of
from runtime.policy import ACTIONS
from runtime.robot import load_recording

SCANNED = 8
"""Observations of which the ranges are looked at, beside the golden one."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Subject:
    """Made by `prepare`."""

    config: BuildConfig
    recipe: Recipe
    checkpoint: Checkpoint
    rules: Mapping[str, Rule]
    """Of every layer of the policy."""
    grid: tuple[int, int]
    """Patches of the image."""
    observations: tuple[Observation, ...]
    """For calibration; none in float32."""
    statistics: Mapping[str, Statistics]
    """Of the layers' inputs; none where nothing is quantized."""
    model: AnchorVLA4D
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


def prepare(config: BuildConfig, recipe: Recipe, checkpoint: Checkpoint) -> Subject:
    """Calibrate, quantize, split, and run both policies on the golden observation.

    Raises:
        ExportError: there are no observations to calibrate on.
        ValueError: the recipe does not fit the policy.
    """
    rules = decide(recipe, checkpoint.model)
    grid = grid_of(config.image_size[1], config.image_size[0], checkpoint.image)
    exact = split(checkpoint.model, checkpoint.parts, grid, config.tokens)
    seen = None if config.golden is None else _middle_of(config.golden)
    golden = make_golden(checkpoint, seen, config.image_size)
    golden[ACTIONS] = reference_actions(checkpoint, golden)
    tensors = exact_tensors = Modules(checkpoint, exact, grid).tensors(golden)
    state_dim = checkpoint.config.head.state_dim
    observations = tuple(
        observe(config, recipe, state_dim, stride=config.stride, limit=config.max_observations)
    )
    model, parts, statistics = checkpoint.model, exact, {}
    if any(rule.format not in ("float32", "float") for rule in rules.values()):
        statistics = dict(_calibrate(config, checkpoint, observations))
        model = quantize(model, recipe, statistics)
        parts = split(model, checkpoint.parts, grid, config.tokens)
        tensors = Modules(checkpoint, parts, grid).tensors(golden)
    return Subject(
        config=config,
        recipe=recipe,
        checkpoint=checkpoint,
        rules=rules,
        grid=grid,
        observations=observations,
        statistics=statistics,
        model=model,
        exact=exact,
        parts=parts,
        golden=golden,
        exact_tensors=exact_tensors,
        tensors=tensors,
    )


def observe(
    config: BuildConfig, recipe: Recipe, state_dim: int, *, stride: int, limit: int | None
) -> list[Observation]:
    """Observations for a recipe that needs some, states of `state_dim`.

    Raises:
        ExportError: they cannot be read, or are of another robot.
    """
    if not recipe.is_quantized:
        return []
    try:
        found = list(
            read_observations(config.calibration, stride=stride, limit=limit, camera=config.camera)
        )
    except ValueError as error:
        raise ExportError(f"calibration of {recipe.name}: {error}") from None
    if wrong := [seen.state.shape for seen in found if seen.state.shape != (state_dim,)]:
        raise ExportError(
            f"calibration of {recipe.name}: {config.calibration} has states {list(wrong[0])}, this "
            f"policy takes [{state_dim}]: give episodes of its own robot (--calibration)"
        )
    return found


def scanned_tensors(subject: Subject) -> list[dict[str, NDArray[Any]]]:
    """All tensors on some observations, for the range scan; none where nothing can overflow."""
    if subject.recipe.base != "float16":
        return []
    stride = max(1, len(subject.observations) // SCANNED)
    chosen = subject.observations[::stride][:SCANNED]
    modules = Modules(subject.checkpoint, subject.parts, subject.grid)
    return [
        modules.tensors(golden_of(subject.checkpoint, seen, seed=number))
        for number, seen in enumerate(chosen)
    ]


def _calibrate(
    config: BuildConfig, checkpoint: Checkpoint, observations: tuple[Observation, ...]
) -> Mapping[str, Statistics]:
    """Kept in a file beside the destination until it is whole: a run that is cut off resumes."""
    runs = [
        partial(reference_actions, checkpoint, golden_of(checkpoint, seen, seed=number))
        for number, seen in enumerate(observations)
    ]
    digest = hashlib.sha256(checkpoint.sha256.encode())
    for seen in observations:
        digest.update(seen.anchor.tobytes() + seen.frame.tobytes())
        digest.update(seen.instruction.encode() + seen.state.tobytes())
    keep = config.out.with_name(f"{config.out.name}.calibration.npz")
    statistics = calibrate(checkpoint.model, runs, keep=keep, key=digest.hexdigest())
    keep.unlink(missing_ok=True)
    return statistics


def _middle_of(path: Path) -> Observation:
    """The frame in the middle of a recorded episode."""
    recording = load_recording(path)
    frame = len(recording.images) // 2
    return Observation(
        anchor=recording.images[0],
        frame=recording.images[frame],
        instruction=recording.instruction,
        state=recording.states[frame],
    )
