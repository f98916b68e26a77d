"""Precision recipes: which number format each engine is exported in.

A recipe is a function that returns a complete configuration; `RECIPES` names them all.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """How a policy's engines are written."""

    name: str
    dtype: Literal["float32"]
    """Weights and activations of every engine."""
    opset: int
    """ONNX operator set. At most 20, so that TensorRT 10.3 of JetPack 6 reads it."""
    tolerance: float
    """Largest relative error of an engine against its module, norm of difference over norm."""


def float32() -> Recipe:
    """The reference precision. Opset 18 is what the exporter writes without a converter.

    Two float32 implementations of a sum of n terms differ by about sqrt(n) * 6e-8 of its size;
    for n = 11008 that is 6e-6 per product, and 1e-4 leaves room for some tens of them in a row.
    """
    return Recipe(name="float32", dtype="float32", opset=18, tolerance=1e-4)


RECIPES = {"float32": float32}
