"""What flows into every linear layer on the policy's own observations.

Axes: K = inputs of a layer, R = sampled vectors.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from runtime.storage.files import Kind, check_output, replacing

KEPT = Kind("kept statistics of a calibration", (b"key.npy", b"done.npy"))

SAMPLED_ROWS = 256
"""Input vectors kept per layer, for the methods that search on them."""
SAVE_EVERY = 8
"""Runs between two saves, or fewer:"""
SAVE_SECONDS = 15.0
"""What a run took that was longer is kept at once."""


@dataclass(frozen=True, slots=True)
class Statistics:
    """Of one layer's input, over all observations."""

    channel_max: NDArray[np.float32]
    """[K] largest magnitude of each channel."""
    rows: NDArray[np.float32]
    """[R, K] some of the vectors, evenly taken."""
    num_rows: int
    """Vectors that were seen."""

    @property
    def max(self) -> float:
        """Largest magnitude of all."""
        return float(self.channel_max.max())


class Observer:
    """Collects the statistics of one layer; the sample thins itself out as vectors come in."""

    def __init__(self, seen: Statistics | None = None) -> None:
        self.seen = seen
        self._stride = 1
        while seen is not None and -(-seen.num_rows // self._stride) > SAMPLED_ROWS:
            self._stride *= 2

    def observe(self, x: Tensor, layer: str) -> None:
        """Add the vectors [..., K] that `layer` is given.

        Raises:
            ValueError: one of them is NaN or infinite.
        """
        new = x.detach().reshape(-1, x.shape[-1]).float().numpy()
        largest = np.abs(new).max(axis=0)
        if not np.isfinite(largest).all():
            raise ValueError(f"the input of {layer} is NaN or infinite during calibration")
        if self.seen is None:
            self.seen = Statistics(largest, new[:0].copy(), 0)
        first = -self.seen.num_rows % self._stride
        rows = np.concatenate([self.seen.rows, new[first :: self._stride]])
        num_rows = self.seen.num_rows + len(new)
        while len(rows) > SAMPLED_ROWS:
            rows, self._stride = rows[::2].copy(), 2 * self._stride
        self.seen = Statistics(np.maximum(self.seen.channel_max, largest), rows, num_rows)


def calibrate(
    model: nn.Module,
    runs: Sequence[Callable[[], object]],
    *,
    keep: Path | None = None,
    key: str = "",
) -> Mapping[str, Statistics]:
    """Run each of `runs`, which call `model`, and watch the inputs of its linear layers.

    Args:
        keep: file that takes the statistics now and then; runs that it has seen are not repeated.
        key: what the statistics are of; a file with another key is begun anew.

    Returns:
        Per layer that was called, by its name in `model`.

    Raises:
        ValueError: nothing ran, or an input was NaN or infinite.
    """
    if keep is not None:
        check_output(keep, KEPT)
    done, statistics = (0, {}) if keep is None else _read(keep, key)
    observers = {name: Observer(seen) for name, seen in statistics.items()}

    def watch(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def hook(_module: nn.Module, arguments: tuple[Tensor, ...]) -> None:
            observers.setdefault(name, Observer()).observe(arguments[0], name)

        return hook

    handles = [
        module.register_forward_pre_hook(watch(name))
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear)
    ]
    try:
        with torch.no_grad():
            saved_s = time.monotonic()
            for number, run in enumerate(runs[done:], done + 1):
                run()
                is_due = number % SAVE_EVERY == 0 or number == len(runs)
                if keep is not None and (is_due or time.monotonic() - saved_s > SAVE_SECONDS):
                    _write(keep, key, number, _seen(observers))
                    saved_s = time.monotonic()
    finally:
        for handle in handles:
            handle.remove()
    if not observers:
        raise ValueError("nothing to calibrate on: no linear layer was called")
    return _seen(observers)


def _seen(observers: Mapping[str, Observer]) -> dict[str, Statistics]:
    return {name: o.seen for name, o in observers.items() if o.seen is not None}


def _write(path: Path, key: str, done: int, statistics: Mapping[str, Statistics]) -> None:
    arrays: dict[str, NDArray[np.generic]] = {"key": np.array(key), "done": np.array(done)}
    for name, seen in statistics.items():
        arrays[f"max/{name}"] = seen.channel_max
        arrays[f"rows/{name}"] = seen.rows
        arrays[f"num/{name}"] = np.array(seen.num_rows)
    with replacing(path, KEPT) as partial, partial.open("wb") as file:
        np.savez(file, allow_pickle=False, **arrays)


def _read(path: Path, key: str) -> tuple[int, dict[str, Statistics]]:
    if not path.exists():
        return 0, {}
    with np.load(path, allow_pickle=False) as kept:
        if str(kept["key"]) != key:
            return 0, {}
        names = [name.removeprefix("max/") for name in kept.files if name.startswith("max/")]
        return int(kept["done"]), {
            n: Statistics(kept[f"max/{n}"], kept[f"rows/{n}"], int(kept[f"num/{n}"])) for n in names
        }
