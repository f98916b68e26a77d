"""What a plan's layers compute in, as TensorRT's inspector tells it, against the recipe."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from typing import Any

from .compiler import ONNX_LAYER


def audit_layers(inspector_json: str, expected: Collection[str]) -> list[str]:
    """Do the products that should be int8 run on int8? One sentence for each that does not.

    Checked: of the layers that hold the product, one has an int8 input. Not checked: that weights
    of weight-only products (w4, w8) stay packed, for an engine lists them among a layer's constants
    only in some versions; and that a layer of several products reads int8 for each of them.

    Args:
        inspector_json: of the whole engine, compiled with detailed verbosity.
        expected: names of ONNX nodes, `Compiled.int8_products`.

    Raises:
        ValueError: it is no such JSON, or the engine tells layers' names only.
    """
    # Separators between entries of Metadata are control characters, left unescaped.
    raw = json.loads(inspector_json, strict=False)
    layers = raw.get("Layers") if isinstance(raw, dict) else None
    if not isinstance(layers, list) or not all(isinstance(layer, dict) for layer in layers):
        raise ValueError(
            "the inspector tells no more than names of layers; the plan was compiled without "
            "detailed profiling verbosity"
        )
    holders: dict[str, list[Mapping[str, Any]]] = {}
    for layer in layers:
        for name in ONNX_LAYER.findall(str(layer.get("Metadata", ""))):
            holders.setdefault(name, []).append(layer)
    return [words for name in sorted(expected) if (words := _misfit(name, holders.get(name, [])))]


def _misfit(name: str, layers: list[Mapping[str, Any]]) -> str:
    if not layers:
        return f"{name}: in no layer of the engine"
    read = [_type_of(port) for layer in layers for port in layer.get("Inputs", [])]
    if any("int8" in words.lower() for words in read):
        return ""
    found = ", ".join(str(layer.get("Name")) for layer in layers)
    return f"{name}: computed by {found}, which reads {sorted(set(read))}, expected Int8"


def _type_of(port: Mapping[str, Any]) -> str:
    """One key in TensorRT 10.3, two in later ones."""
    return str(port.get("Datatype") or port.get("Format/Datatype"))
