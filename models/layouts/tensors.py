"""What is asked of the tensors of a folder before a policy is made of it: sizes, layers, wrappers.

In: names and shapes as they are stored, or under our names. Out: numbers, or an error that names
the tensor.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path

from models.sources import some

Shapes = Mapping[str, tuple[int, ...]]
LORA = "by peft, as LoRA: merge the adapters (merge_and_unload) and save again"
WRAPPED = {
    "module.": "by torch's DistributedDataParallel: save the module inside it",
    "base_model.": LORA,
    "_orig_mod.": "by torch.compile: save the module inside it",
}


def refuse_wrapped(file: Path, names: Collection[str]) -> None:
    """
    Raises:
        ValueError: names that a wrapper of the module gave them.
    """
    for begin, how in WRAPPED.items():
        if wrapped := [name for name in names if name.startswith(begin)]:
            raise ValueError(f"{file}: {some(wrapped)}: names wrapped {how}")
    if adapters := [name for name in names if "lora_" in name or ".base_layer." in name]:
        raise ValueError(f"{file}: {some(adapters)}: names wrapped {LORA}")


def sizes(shapes: Shapes, name: str, axes: int) -> tuple[int, ...]:
    """Of a tensor.

    Raises:
        ValueError: it is not there, or has another number of axes.
    """
    shape = shapes.get(name)
    if shape is None or len(shape) != axes or 0 in shape:
        got = "missing" if shape is None else f"{list(shape)}"
        raise ValueError(f"the weights hold no {name} of {axes} axes: {got}")
    return shape


def count(shapes: Shapes, begin: str) -> int:
    """Layers of a name.

    Raises:
        ValueError: none, or a gap between them.
    """
    found = {
        int(number)
        for name in shapes
        if name.startswith(begin) and (number := name.removeprefix(begin).split(".")[0]).isdecimal()
    }
    if not found or found != set(range(len(found))):
        raise ValueError(
            f"the weights hold layers {sorted(found)} of {begin}N, none may be missing"
        )
    return len(found)
