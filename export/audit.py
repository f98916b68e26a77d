"""What precision does a finished engine really have? Read from its file, compared with the recipe.

The writer's own records are not asked: weights are recognised by the names of their initializers,
their formats by the types and the Q/DQ nodes around them.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

import onnx
from onnx import NodeProto, TensorProto

from quant.recipes import Base, Rule

FLOATS: dict[int, Base] = {
    TensorProto.FLOAT: "float32",
    TensorProto.BFLOAT16: "bfloat16",
    TensorProto.FLOAT16: "float16",
}
CODES: dict[int, str] = {
    TensorProto.INT8: "w8",
    TensorProto.INT4: "w4",
    TensorProto.UINT4: "asymmetric w4",
}
FP8 = {
    getattr(TensorProto, name)
    for name in ("FLOAT8E4M3FN", "FLOAT8E4M3FNUZ", "FLOAT8E5M2", "FLOAT8E5M2FNUZ")
}
PASSING_OPS = {"Cast", "Transpose", "Reshape", "Identity"}
PARTS = (".weight", ".codes", ".kept_weight")


@dataclass(frozen=True, slots=True)
class Precision:
    """Of one product with a weight."""

    format: str
    """float32, bfloat16, float16, w8, w8a8, w4."""
    base: str
    """What it is computed in where it is not integers."""

    def __str__(self) -> str:
        return self.format if self.format == self.base else f"{self.format} in {self.base}"


def read_precisions(path: Path) -> dict[str, Precision]:
    """The precision of every product with a weight, by the name of its initializer."""
    graph = onnx.load(path, load_external_data=False).graph
    made = {name: node for node in graph.node for name in node.output}
    constants = {t.name: t for t in graph.initializer}
    found = {}
    for node in graph.node:
        if node.op_type not in ("MatMul", "Gemm"):
            continue
        for index in (1, 0):
            source, dequantized = _source(node.input[index], made)
            if source in constants:
                weight, other = constants[source], node.input[1 - index]
                found[source] = _precision(weight, dequantized, other, made, constants)
                break
    return found


def audit(
    engines: Mapping[str, Mapping[str, Precision]],
    names: Mapping[str, Mapping[str, str]],
    rules: Mapping[str, Rule],
    base: Base,
    islands: Collection[str] = (),
) -> list[str]:
    """What differs from the recipe, one sentence each; nothing if it is followed.

    Args:
        engines: per engine what `read_precisions` says.
        names: per engine, path of a layer in its module -> the layer's name in the policy.
        rules: of every layer, by its name in the policy.
        base: of the recipe.
        islands: layers that compute in float32 where the recipe has the base, because a tensor
            beside them leaves its range.
    """
    wrong, seen = [], set()
    for engine, precisions in engines.items():
        for tensor, precision in precisions.items():
            path, part = _layer_of(tensor)
            if not part and precision.format != "float32":
                wrong.append(f"{engine}: {tensor} is {precision}, and of no known layer")
            layer = names[engine].get(path)
            if layer is None or layer not in rules:
                continue  # a weight outside the linear layers: patch embedding, tables
            own_base: Base = "float32" if layer in islands else base
            if part == ".kept_weight":
                expected = Precision(own_base, own_base)
            else:
                expected = _expected(rules[layer], own_base)
                seen.add(layer)
            if precision != expected:
                wrong.append(f"{engine}: {layer} is {precision}, the recipe says {expected}")
    for layer in sorted({n for n, r in rules.items() if r.format != "float32"} - seen):
        wrong.append(f"{layer} is in no engine, the recipe says {rules[layer].format}")
    return wrong


def check_target(path: Path, target: str) -> None:
    """Refuse what the target's compiler cannot take, before it sees it.

    Raises:
        ValueError: FP8 for an Orin, asymmetric int4, int4 below opset 21.
    """
    model = onnx.load(path, load_external_data=False)
    opset = max(entry.version for entry in model.opset_import if not entry.domain)
    kinds = {t.data_type: t.name for t in model.graph.initializer}
    kinds |= {
        a.i: node.output[0]
        for node in model.graph.node
        for a in node.attribute
        if (node.op_type, a.name) in (("Cast", "to"), ("QuantizeLinear", "output_dtype"))
    }
    if target != "thor" and (float8 := FP8 & kinds.keys()):
        raise ValueError(
            f"{path.name}: {kinds[float8.pop()]!r} is FP8, which needs SM 8.9 or newer; an Orin is "
            "SM 8.7: use int8 (recipe orin-w8a8)"
        )
    if TensorProto.UINT4 in kinds:
        raise ValueError(
            f"{path.name}: {kinds[TensorProto.UINT4]!r} is asymmetric int4 (uint4), which TensorRT "
            "does not take: make it symmetric (int4 without zero point)"
        )
    int4 = {t.name for t in model.graph.initializer if t.data_type == TensorProto.INT4}
    for node in model.graph.node:
        if node.op_type == "DequantizeLinear" and node.input[0] in int4:
            if opset < 21:
                raise ValueError(f"{path.name}: int4 needs opset 21, this is {opset}")
            if len(node.input) > 2 and node.input[2]:
                raise ValueError(
                    f"{path.name}: {node.input[0]!r} is asymmetric int4 (it has a zero point), "
                    "which TensorRT does not take: make it symmetric"
                )


def _expected(rule: Rule, base: Base) -> Precision:
    if rule.format == "float32":
        return Precision("float32", "float32")
    if rule.format == "float":
        return Precision(base, base)
    return Precision(rule.format, base)


def _source(name: str, made: Mapping[str, NodeProto]) -> tuple[str, NodeProto | None]:
    """The tensor behind casts, reshapes and a DequantizeLinear, and the latter."""
    dequantized = None
    while name in made:
        node = made[name]
        if node.op_type == "DequantizeLinear" and dequantized is None:
            dequantized = node
        elif node.op_type not in PASSING_OPS:
            break
        name = node.input[0]
    return name, dequantized


def _precision(
    weight: onnx.TensorProto,
    dequantized: NodeProto | None,
    other: str,
    made: Mapping[str, NodeProto],
    constants: Mapping[str, onnx.TensorProto],
) -> Precision:
    if dequantized is None:
        base = FLOATS.get(weight.data_type, "unknown")
        return Precision(base, base)
    scales = constants.get(dequantized.input[1])
    base = "unknown" if scales is None else FLOATS.get(scales.data_type, "unknown")
    codes = CODES.get(weight.data_type, TensorProto.DataType.Name(weight.data_type).lower())
    producer = made.get(other)
    quantized = (
        producer is not None
        and producer.op_type == "DequantizeLinear"
        and producer.input[0] in made
        and made[producer.input[0]].op_type == "QuantizeLinear"
    )
    return Precision(f"{codes}a8" if quantized else codes, base)


def _layer_of(tensor: str) -> tuple[str, str]:
    name = tensor.removesuffix("/low")
    part = next((part for part in PARTS if name.endswith(part)), "")
    return name.removesuffix(part), part
