"""Precision recipes: which number format each linear layer is exported in.

A recipe is a function that returns a complete configuration; `RECIPES` names them all.

| format | weight | input |
|---|---|---|
| float32 | as it is | as it is |
| w8 | int8 per channel | as it is |
| w8a8 | int8 per channel | int8, one scale |
| w4 | int4 in blocks of 128 along K | as it is |
"""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

Format = Literal["float32", "w8", "w8a8", "w4"]


@dataclass(frozen=True, slots=True)
class Rule:
    """Layers by name, and their format."""

    pattern: str
    """Of `fnmatch`, for the layer's name in the policy: `vlm.model.layers.*.mlp.*`."""
    format: Format


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """How a policy's engines are written."""

    name: str
    rules: tuple[Rule, ...]
    """The first that matches a layer decides."""
    opset: int
    """ONNX operator set. At most 20, so that TensorRT 10.3 of JetPack 6 reads it; 21 with int4."""
    tolerance: float
    """Largest relative error of an engine against its module, norm of difference over norm."""
    chain_tolerance: float
    """The same of any tensor when the engines feed each other."""

    @property
    def is_quantized(self) -> bool:
        """Whether any layer leaves float32."""
        return any(rule.format != "float32" for rule in self.rules)

    def assign(self, layers: Iterable[str]) -> Mapping[str, Format]:
        """The format of every layer.

        Raises:
            ValueError: a layer that no rule names, or a rule that decides about none.
        """
        chosen: dict[str, Rule] = {}
        unmatched = []
        for layer in layers:
            rule = next((r for r in self.rules if fnmatch.fnmatchcase(layer, r.pattern)), None)
            if rule is None:
                unmatched.append(layer)
            else:
                chosen[layer] = rule
        if unmatched:
            raise ValueError(
                f"recipe {self.name}: no rule for {len(unmatched)} layers, {unmatched[:3]} first; "
                'add one, or ("*", "float32") as the last'
            )
        used = set(chosen.values())
        if unused := [rule.pattern for rule in self.rules if rule not in used]:
            raise ValueError(
                f"recipe {self.name}: {unused} decide about no layer: a misspelt name, or an "
                "earlier rule takes everything"
            )
        return {layer: rule.format for layer, rule in chosen.items()}


def float32() -> Recipe:
    """The reference precision. Opset 18 is what the exporter writes without a converter.

    Two float32 implementations of a sum of n terms differ by about sqrt(n) * 6e-8 of its size;
    for n = 11008 that is 6e-6 per product, and 1e-4 leaves room for some tens of them in a row.
    """
    return Recipe(
        name="float32",
        rules=(Rule("*", "float32"),),
        opset=18,
        tolerance=1e-4,
        chain_tolerance=1e-4,
    )


def cpu_int8() -> Recipe:
    """Weights and inputs in int8, for a CPU with int8 dot products; what is small stays float32.

    The condition and the sampler's ends are a thousandth of the arithmetic, and their errors reach
    the actions undiminished. An engine and its module, given the same numbers, round them to the
    same codes. In a chain a number that lies within float32 rounding of a tie may fall to the other
    side: a step of 1/127 of the largest in one of some thousand numbers, which the later layers
    carry on. 2e-2 is what four such steps amount to; 5e-3 was seen.
    """
    kept = (
        "info_sharing.info_sharing.proj_embed",
        "info_sharing.final_projection",
        "action_head.state_linear",
        "action_head.combine.*",
        "action_head.cond_obs_emb",
        "action_head.t_embedder.*",
        "action_head.x_embedder",
        "action_head.final_layer.*",
    )
    rules = (*(Rule(pattern, "float32") for pattern in kept), Rule("*", "w8a8"))
    return Recipe(name="cpu-int8", rules=rules, opset=18, tolerance=1e-4, chain_tolerance=2e-2)


RECIPES = {"float32": float32, "cpu-int8": cpu_int8}
