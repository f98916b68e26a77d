"""Is a finished engine what its recipe says? Every product with a weight, read from its file.

For each layer: one product whose weight has the promised format, and whose input too; and no other
product with a weight anywhere in the file, so that nothing else can do the layer's work.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import onnx
from onnx import TensorProto, shape_inference

from export.engines.join import layers_of
from export.engines.products import Contents, Precision, Product
from quant.recipes import Base, Rule

FP8 = {
    getattr(TensorProto, name)
    for name in ("FLOAT8E4M3FN", "FLOAT8E4M3FNUZ", "FLOAT8E5M2", "FLOAT8E5M2FNUZ")
}
PARTS = (".weight", ".codes", ".kept_weight")


def audit(
    engines: Mapping[str, Contents],
    names: Mapping[str, Mapping[str, str]],
    rules: Mapping[str, Rule],
    base: Base,
    islands: Collection[str] = (),
    folded: Collection[str] = (),
) -> list[str]:
    """What differs from the recipe, one sentence each; nothing if it is followed.

    Args:
        engines: per engine what `read_contents` says.
        names: per engine, path of a layer in its module -> the layer's name in the policy.
        rules: of every layer, by its name in the policy.
        base: of the recipe.
        islands: layers that compute in float32 where the recipe has the base, because a tensor
            beside them leaves its range.
        folded: layers that no engine holds, since their results are constants.
    """
    wrong: list[str] = []
    nameless: list[str] = []
    seen: set[str] = set()
    for engine, contents in engines.items():
        wrong += [f"{engine}: {fault}" for fault in contents.faults]
        found: dict[str, list[Product]] = {}
        for product in contents.products:
            paths = layers_of(_layer_of(product.weight)[0])
            layers = [names[engine].get(path, "") for path in paths]
            if all(layer in rules for layer in layers):
                for layer in layers:
                    found.setdefault(layer, []).append(product)
                continue
            wrong += [f"{engine}: {product.weight}: {fault}" for fault in product.faults]
            nameless.append(f"{engine}: {product.weight} is {product.precision}")
            if product.precision.format != "float32":
                wrong.append(f"{nameless.pop()}, and of no known layer")
        for layer, products in found.items():
            own_base: Base = "float32" if layer in islands else base
            words = _differences(products, rules[layer], own_base)
            wrong += [f"{engine}: {layer}{word}" for word in words]
        seen |= found.keys()
    missing = [layer for layer in rules if layer not in seen and layer not in folded]
    for layer in sorted(missing):
        if rules[layer].format != "float32" or not nameless:
            wrong.append(f"{layer} is in no engine, the recipe says {rules[layer].format}")
        else:  # its weight was transposed into a constant that has no name of its own
            nameless.pop(0)
    return wrong + [f"{words}, and of no known layer" for words in nameless]


def check_target(path: Path, target: str) -> None:
    """Refuse what the target's compiler cannot take, before it sees it.

    Raises:
        ValueError: FP8 for an Orin, asymmetric int4, int4 below opset 21, a scale of another type
            than what it scales.
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
    if mistyped := mistyped_scales(model):
        raise ValueError(
            f"{path.name}: {mistyped[0]}, which an Orin's compiler may not take: write the scale "
            f"in the same type ({len(mistyped)} such nodes)"
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


def mistyped_scales(model: onnx.ModelProto) -> list[str]:
    """Scales of another type than a QuantizeLinear's input or a DequantizeLinear's result.

    ONNX allows it from opset 23 on, and graphs of other tools declare it before. One that builds on
    Thor does not on Orin, same TensorRT (NVIDIA/TensorRT issue 4832: "No matching rules found for
    input operand types"); TensorRT for RTX takes it for SM 8.6, so no compile check finds it.
    """
    graph = shape_inference.infer_shapes(model).graph  # what is declared already, it keeps
    types = {t.name: t.data_type for t in graph.initializer}
    for value in (*graph.input, *graph.value_info, *graph.output):
        types[value.name] = value.type.tensor_type.elem_type
    found = []
    for node in graph.node:
        if node.op_type not in ("QuantizeLinear", "DequantizeLinear"):
            continue
        is_result = node.op_type == "DequantizeLinear"
        scale = types.get(node.input[1], 0)
        scaled = types.get(node.output[0] if is_result else node.input[0], 0)
        if scale != scaled or not scale:
            kinds = [TensorProto.DataType.Name(kind).lower() for kind in (scale, scaled)]
            found.append(
                f"{node.name or node.output[0]!r} is a {node.op_type} whose scale is {kinds[0]} "
                f"and whose {'result' if is_result else 'input'} is {kinds[1]}"
            )
    return found


def _differences(products: Sequence[Product], rule: Rule, base: Base) -> list[str]:
    """Of a layer's products in an engine from what its rule says: one, and one of kept channels."""
    kept = [product for product in products if _layer_of(product.weight)[1]]
    whole = [product for product in products if product not in kept]
    words = [f": {fault}" for product in products for fault in product.faults]
    pairs = [(p, _expected(rule, base)) for p in whole] + [(p, Precision(base, base)) for p in kept]
    words += [
        f" is {product.precision}, the recipe says {expected}"
        for product, expected in pairs
        if product.precision != expected
    ]
    if not whole:
        words.append(" is computed by the channels that it keeps, and nothing else")
    elif len(whole) > 1 or len(kept) > 1:
        weights = ", ".join(product.weight for product in products)
        words.append(f" is computed by {len(products)} products ({weights}), expected one")
    elif kept and (rule.method != "outliers" or kept[0].shape[0] >= whole[0].shape[0]):
        words.append(f" keeps {kept[0].shape[0]} of {whole[0].shape[0]} channels in float")
    return words


def _expected(rule: Rule, base: Base) -> Precision:
    if rule.format == "float32":
        return Precision("float32", "float32")
    if rule.format == "float":
        return Precision(base, base)
    return Precision(rule.format, base)


def _layer_of(tensor: str) -> tuple[str, bool]:
    """Path of the layer, and whether this is what it keeps in float beside its codes."""
    name = tensor.removesuffix("/low")
    part = next((part for part in PARTS if name.endswith(part)), "")
    return name.removesuffix(part), part == ".kept_weight"
