"""What an export will take of memory and disk, before it begins; and what it took.

In: a policy whose weights may lie on disk, a recipe, and how its trunks are cut. Out: bytes by what
takes them, and a refusal where they are not there. Every figure is counted from shapes but for
`LIBRARIES` and `COPIES`, which were measured.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from export.config import BuildConfig
from export.engines.resident import RESIDENT_BYTES
from export.errors import ExportError
from export.held_out import LEAST_JUDGED
from export.parts import EngineSizes
from export.tokens import choose_tokens
from models.checkpoint import Checkpoint
from models.families import family_of
from models.networks.parts import LayersPerPart
from models.stored import KEPT_BYTES
from quant.apply import linear_layers
from quant.calibrate import SAMPLED_ROWS
from quant.recipes import Recipe, Rule
from runtime.board.machine import meminfo, peak_bytes
from runtime.image import grid_of

LIBRARIES = 700_000_000
"""Bytes of torch, onnx, ONNX Runtime and the rest of a process without weights. The demo, whose
weights are 18 MB, was exported in 0.48 to 0.54 GB."""
COPIES = 3.5
"""Of an engine's weights while it is traced: the module's, the graph's, the message's, and half of
one that is on its way to the file."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Needs:
    """Of one export, in bytes."""

    memory: Mapping[str, int]
    """By what takes it; all of it at once. The last is the largest step."""
    disk: Mapping[str, int]
    """The same, beside the destination, the new bundle included."""

    @property
    def memory_bytes(self) -> int:
        return sum(self.memory.values())

    @property
    def disk_bytes(self) -> int:
        return sum(self.disk.values())

    def describe(self) -> str:
        """In one line."""
        return (
            f"about {_gb(self.memory_bytes)} of memory ({_listed(self.memory)}) and "
            f"{_gb(self.disk_bytes)} of disk ({_listed(self.disk)})"
        )


def needs_of(
    checkpoint: Checkpoint,
    recipe: Recipe,
    rules: Mapping[str, Rule],
    layers: LayersPerPart,
    config: BuildConfig,
) -> Needs:
    """Estimate an export. Nothing of the policy is read but shapes.

    Args:
        layers: that one engine holds at most.
    """
    model, policy = checkpoint.model, checkpoint.config
    sizes = EngineSizes(policy, recipe).engines(layers)
    exact = dataclasses.replace(recipe, base="float32")
    traced = [e.num_bytes for e in EngineSizes(policy, exact).engines(layers).values()]
    linear = linear_layers(model)
    quantized = {n: linear[n] for n in linear if rules[n].format not in ("float32", "float")}
    codes = sum(layer.weight.numel() for layer in quantized.values())
    seen = sum(layer.in_features for layer in linear.values()) if quantized else 0
    statistics = 4 * SAMPLED_ROWS * seen
    kept = min(KEPT_BYTES, 4 * sum(p.numel() for p in model.parameters()))
    largest = {
        "folding": kept + statistics,
        "tracing the largest engine": round(COPIES * max(traced)),
        "running modules and bundle": kept + 2 * min(RESIDENT_BYTES, sum(traced)),
    }
    step = max(largest, key=lambda name: largest[name])
    is_lowered = recipe.base != "float32"
    table = policy.language.vocab_size * policy.language.hidden_size * 4
    tensors = _tensor_bytes(checkpoint, layers, config)
    return Needs(
        memory={
            "libraries": LIBRARIES,
            "statistics": statistics,
            "tensors of observations": (LEAST_JUDGED + 2) * tensors,
            step: largest[step],
        },
        disk={
            "bundle": table + tensors + sum(engine.num_bytes for engine in sizes.values()),
            "codes and statistics": codes + statistics,
            "tensors of observations": (LEAST_JUDGED + 3) * tensors,
            "float32 engines": sum(traced) if is_lowered else 0,
        },
    )


def refuse_if_too_large(
    needs: Needs,
    config: BuildConfig,
    depth: int,
    with_layers: Callable[[int], Needs],
    available: int | None = None,
) -> None:
    """
    Args:
        depth: layers of the language model.
        with_layers: what an export with so many of them in a part would take.
        available: bytes of memory; what is free now, by default.

    Raises:
        ExportError: the memory is not there. The message says what would do.
    """
    available = available_bytes() if available is None else available
    if needs.memory_bytes <= available:
        return
    words = f"{config.checkpoint}: an export needs {needs.describe()}; "
    words += f"{_gb(available)} of memory are free. "
    least, count = needs.memory_bytes, depth
    while count > 1:
        count = (count + 1) // 2
        smaller = with_layers(count).memory_bytes
        if smaller <= available:
            raise ExportError(f"{words}--layers-per-part {count} would do with {_gb(smaller)}")
        least = min(least, smaller)
    raise ExportError(f"{words}Free some; the least that would do is {_gb(least)}")


def available_bytes() -> int:
    """Of memory, without swapping: what the kernel says, or what this container has left."""
    available = meminfo()["MemAvailable"]
    limit, used = (Path("/sys/fs/cgroup", f"memory.{name}") for name in ("max", "current"))
    if limit.is_file() and (most := limit.read_text().strip()) != "max":
        available = min(available, int(most) - int(used.read_text()))
    return available


class DiskWatch:
    """The most that a folder held at any of the moments when it was looked at."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.most_bytes = 0

    def look(self) -> int:
        """Look now.

        Returns:
            What it holds, in bytes.
        """
        files = [path.stat() for path in self._folder.rglob("*") if path.is_file()]
        now = sum({(file.st_dev, file.st_ino): file.st_size for file in files}.values())
        self.most_bytes = max(self.most_bytes, now)
        return now


def compare(needs: Needs, disk_bytes: int) -> str:
    """Estimate and truth, in one line; what compilers take, which are processes of their own, is in
    neither."""
    return (
        f"memory: {_gb(peak_bytes())} at most, {_gb(needs.memory_bytes)} estimated; disk: "
        f"{_gb(disk_bytes)} at most, {_gb(needs.disk_bytes)} estimated"
    )


def _tensor_bytes(checkpoint: Checkpoint, layers: LayersPerPart, config: BuildConfig) -> int:
    """Of the graph's tensors on one observation."""
    family, (width, height) = family_of(checkpoint.config), config.image_size
    slots = choose_tokens(checkpoint, grid_of(height, width, checkpoint.image), (), config.tokens)
    graph = family.split(
        family.shapes(checkpoint.config),
        checkpoint.parts,
        checkpoint.image,
        config.image_size,
        slots.slots,
        layers,
        resize_on=config.resize_on,
        samples=config.samples,
    ).graph
    return sum(tensor.num_bytes for tensor in graph.tensors.values())


def _listed(parts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {_gb(size)}" for name, size in parts.items() if size)


def _gb(num_bytes: float) -> str:
    return f"{num_bytes / 1e9:.2f} GB"
