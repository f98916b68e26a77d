"""Which layers may lose precision: every group alone in every format, then the cheapest together.

In: a policy and observations. Out: the action error that each group of layers causes in each
format, and a path of recipes from all in the base format to all in the smallest, where each step
takes the change that adds the least squared error for what it saves. Two things are approximated:

- Errors of groups are taken to add in squares, as independent ones do. So the recipes on the path
  are run, and the error that they have stands beside the one that was predicted.
- Layers that stay in the base format compute in float32 here. What bfloat16 itself costs is in no
  figure; the export measures it.
"""

from __future__ import annotations

import dataclasses
import fnmatch
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from models.checkpoint import Checkpoint, reference
from quant.apply import linear_layers, quantize
from quant.calibrate import Statistics, calibrate
from quant.data.episode import Observation, shown
from quant.recipes import DECODERS, KEPT, Format, Method, Recipe, Rule, orin_w4a16, orin_w8a8
from quant.targets import Costs
from runtime.backends.parity import relative_error


def _decoder(*names: str) -> tuple[str, ...]:
    """Patterns of these layers in every block of a decoder."""
    return tuple(f"{layers}.{name}" for layers in DECODERS for name in names)


GROUPS: dict[str, tuple[str, ...]] = {
    "vision.qkv": (
        "vlm.visual.blocks.*.attn.qkv",
        "vlm.visual.encoder.layers.*.self_attn.[qkv]_proj",
        "vision_backbone.*.blocks.*.attn.qkv",
    ),
    "vision.proj": (
        "vlm.visual.blocks.*.attn.proj",
        "vlm.visual.encoder.layers.*.self_attn.out_proj",
        "vision_backbone.*.blocks.*.attn.proj",
    ),
    "vision.gate_up": (
        "vlm.visual.blocks.*.mlp.gate_proj",
        "vlm.visual.blocks.*.mlp.up_proj",
        "vlm.visual.blocks.*.mlp.linear_fc1",
        "vlm.visual.encoder.layers.*.mlp.fc1",
        "vision_backbone.*.blocks.*.mlp.fc1",
    ),
    "vision.down": (
        "vlm.visual.blocks.*.mlp.down_proj",
        "vlm.visual.blocks.*.mlp.linear_fc2",
        "vlm.visual.encoder.layers.*.mlp.fc2",
        "vision_backbone.*.blocks.*.mlp.fc2",
    ),
    "vision.merger": (
        "vlm.visual.merger.mlp.*",
        "vlm.visual.merger.linear_fc*",
        "vlm.visual.deepstack_merger_list.*",
        "vlm.connector.*",
        "projector.*",
    ),
    "language.qkv": _decoder("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "language.o": _decoder("self_attn.o_proj", "self_attn.dense"),
    "language.gate_up": _decoder("mlp.gate_proj", "mlp.up_proj", "mlp.fc1"),
    "language.down": _decoder("mlp.down_proj", "mlp.fc2"),
    "spatial.project": ("info_sharing.info_sharing.proj_embed",),
    "spatial.attention": ("info_sharing.info_sharing.self_attention_blocks.*.attn.*",),
    "spatial.mlp": ("info_sharing.info_sharing.self_attention_blocks.*.mlp.*",),
    "condition": ("action_head.combine.*", "action_head.cond_obs_emb"),
    "head.out": ("action_head.model.proj_out_2", "action_head.action_decoder.layer1"),
    "modulation": ("action_head.*.adaLN_modulation.*",),
    "head.attention": (
        "action_head.blocks.*.attn.*",
        "action_head.model.transformer_blocks.*.attn1.*",
        "action_head.layers.*.self_attn.*",
        *(
            f"action_head.model.mlp_resnet_blocks.*.{name}"
            for name in ("q_proj", "?_self", "?_adapter", "?_task", "o_proj")
        ),
        "token_learner.attn.*",
        "token_learner.projection",
    ),
    "head.mlp": (
        "action_head.blocks.*.mlp.*",
        "action_head.model.transformer_blocks.*.ff.*",
        "action_head.layers.*.mlp.*",
        "action_head.model.fc1",
        "action_head.model.mlp_resnet_blocks.*.ffn.1",
        "token_learner.mlp.*",
    ),
    "keyframes": ("keyframe_head.*",),
    "auxiliary": ("position_head.fc1", "grasp_head.fc1", "pose_head.fc1", "joint_head.*"),
}
"""Layers that get one format together; with `KEPT` they are all that any policy has."""
CANDIDATES: dict[Format, Method] = {"float": "plain", "w8a8": "tokens", "w4": "awq"}
"""What a group may become, and how it is found: the formats that TensorRT documents."""
Errors = Mapping[str, Mapping[Format, float]]
"""Action error per group and format."""


class Trial:
    """A policy on trial: what it does in float32, and how far a recipe leads it astray.

    Every other observation is calibrated on; the rest is what errors are measured on, each with
    a noise of its own that is the same for all recipes.
    """

    def __init__(self, checkpoint: Checkpoint, observations: Sequence[Observation]) -> None:
        """
        Raises:
            ValueError: fewer than two observations, or layers that `GROUPS` does not sort.
        """
        if len(observations) < 2:
            raise ValueError(
                f"{len(observations)} observations: it takes one to calibrate on and another to "
                "measure on, and a dozen of each to mean something"
            )
        self.checkpoint = checkpoint
        self.layers = group_layers(checkpoint.model)
        self.measured_on = observations[1::2]
        runs = [partial(_act, checkpoint, o, 0, i) for i, o in enumerate(observations[::2])]
        self.statistics: Mapping[str, Statistics] = calibrate(checkpoint.model, runs)
        self.exact = self._chunks(checkpoint)

    def error(self, recipe: Recipe) -> float:
        """Root mean square of the relative action errors against float32."""
        model = quantize(self.checkpoint.model, recipe, self.statistics)
        return self._distance(self._chunks(dataclasses.replace(self.checkpoint, model=model)))

    def noise_spread(self, num_seeds: int = 4) -> float:
        """What other noise seeds do to the float32 actions, in the same measure."""
        seeds = range(1, num_seeds + 1)
        spreads = [self._distance(self._chunks(self.checkpoint, seed)) for seed in seeds]
        return float(np.sqrt(np.mean(np.square(spreads))))

    def _chunks(self, checkpoint: Checkpoint, seed: int = 0) -> list[NDArray[np.float32]]:
        return [_act(checkpoint, o, seed, i) for i, o in enumerate(self.measured_on)]

    def _distance(self, chunks: Sequence[NDArray[np.float32]]) -> float:
        errors = [relative_error(a, b) for a, b in zip(chunks, self.exact, strict=True)]
        return float(np.sqrt(np.mean(np.square(errors))))


def _ignore(_step: str) -> None:
    return None


def measure(
    trial: Trial, groups: Sequence[str] | None = None, step: Callable[[str], None] = _ignore
) -> dict[str, dict[Format, float]]:
    """The action error that each group alone causes in each of `CANDIDATES`.

    Args:
        groups: all that the policy has by default.
        step: told of each (group, format) before it is measured.
    """
    errors: dict[str, dict[Format, float]] = {}
    for group in trial.layers if groups is None else groups:
        errors[group] = {"float": 0.0}
        for number_format in list(CANDIDATES)[1:]:
            step(f"{group} {number_format}")
            errors[group][number_format] = trial.error(make_recipe({group: number_format}))
    return errors


def measure_layers(
    trial: Trial, number_format: Format, step: Callable[[str], None] = _ignore
) -> dict[str, dict[str, float]]:
    """The action error that each linear layer alone causes: by kind of layer, then by block."""
    errors: dict[str, dict[str, float]] = {}
    for layer in (name for layers in trial.layers.values() for name in layers):
        step(f"{layer} {number_format}")
        alone = Rule(layer, number_format, CANDIDATES[number_format])
        kind, block = _place(layer)
        error = trial.error(_recipe((*KEPT, alone, Rule("*", "float"))))
        errors.setdefault(kind, {})[block] = error
    return errors


@dataclass(frozen=True, slots=True)
class Point:
    """A recipe on the path."""

    formats: Mapping[str, Format]
    """Of every group."""
    cost: float
    predicted: float
    """Action error, if errors add in squares."""


def search(errors: Errors, costs: Costs, budget: float) -> tuple[list[Point], int]:
    """The path from all in the base format to the least cost, and the first point within `budget`.

    Each step is the change of one group that adds the least squared error for what it saves. As
    far as errors add in squares, no recipe of a point's cost has a smaller error than that point.

    Args:
        errors: per group and format.
        costs: per group and format, in the unit of `budget`.

    Raises:
        ValueError: the budget cannot be met; the message has the least cost that can be.
    """
    formats: dict[str, Format] = dict.fromkeys(errors, "float")

    def point() -> Point:
        cost = sum(costs[group][f] for group, f in formats.items())
        squares = sum(errors[group][f] ** 2 for group, f in formats.items())
        return Point(dict(formats), cost, squares**0.5)

    path = [point()]
    while changes := _changes(errors, costs, formats):
        group, number_format = min(changes, key=lambda change: changes[change])
        formats[group] = number_format
        path.append(point())
    within = [index for index, p in enumerate(path) if p.cost <= budget]
    if not within:
        raise ValueError(
            f"a budget of {budget:.4g} cannot be met: from {path[0].cost:.4g} in the base format, "
            f"the least reachable is {path[-1].cost:.4g}"
        )
    return path, within[0]


def _changes(
    errors: Errors, costs: Costs, formats: Mapping[str, Format]
) -> dict[tuple[str, Format], float]:
    """Squared error that each change adds per unit that it saves; only those that save."""
    return {
        (group, new): (errors[group][new] ** 2 - errors[group][old] ** 2)
        / (costs[group][old] - costs[group][new])
        for group, old in formats.items()
        for new in errors[group]
        if costs[group][new] < costs[group][old] and np.isfinite(errors[group][new])
    }


def make_recipe(formats: Mapping[str, Format]) -> Recipe:
    """The recipe of these groups' formats; groups that are left out stay in the base format."""
    rules = [
        Rule(pattern, chosen, CANDIDATES[chosen], where_there=True)
        for group, patterns in GROUPS.items()
        for chosen in [formats.get(group, "float")]
        for pattern in patterns
    ]
    return _recipe((*KEPT, *rules))


def _recipe(rules: Sequence[Rule]) -> Recipe:
    """Target, purpose and tolerances are those of the uniform recipe that goes as far."""
    like = orin_w4a16() if any(rule.format == "w4" for rule in rules) else orin_w8a8()
    return dataclasses.replace(like, name="trial", rules=tuple(rules))


def group_layers(model: nn.Module) -> dict[str, dict[str, nn.Linear]]:
    """The linear layers of each group that has some, by name; those that `KEPT` names are in none.

    Raises:
        ValueError: a layer in no group or in several.
    """
    found: dict[str, dict[str, nn.Linear]] = {group: {} for group in GROUPS}
    lost = []
    for name, layer in linear_layers(model).items():
        if any(fnmatch.fnmatchcase(name, rule.pattern) for rule in KEPT):
            continue
        groups = [
            group
            for group, patterns in GROUPS.items()
            if any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)
        ]
        if len(groups) != 1:
            lost.append(f"{name} in {groups or 'none'}")
        else:
            found[groups[0]][name] = layer
    if lost:
        raise ValueError(
            f"every layer belongs to one group of {__name__}.GROUPS; {len(lost)} do not: {lost[:3]}"
        )
    return {group: layers for group, layers in found.items() if layers}


def _act(
    checkpoint: Checkpoint, observation: Observation, seed: int, tick: int
) -> NDArray[np.float32]:
    declared = checkpoint.inputs(observation.image_size)
    given: dict[str, Any] = shown(declared, observation, seed=seed, tick=tick)
    for name in ("instruction", "leftover"):
        given.pop(name, None)
    return reference(checkpoint, instruction=observation.instruction, **given)


def _place(layer: str) -> tuple[str, str]:
    """Kind and block of a layer: the first number in its name, and the name around it."""
    found = re.fullmatch(r"(.*?)\.(\d+)(?:\.(.*))?", layer)
    kind, block = (f"{found[1]} {found[3] or ''}".strip(), found[2]) if found else (layer, "0")
    for prefix in ("vlm.", "info_sharing.info_sharing."):
        kind = kind.removeprefix(prefix)
    return kind, block
