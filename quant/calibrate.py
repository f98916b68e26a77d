"""What flows into every linear layer on the policy's own observations.

Axes: K = inputs of a layer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn


@dataclass(frozen=True, slots=True)
class Statistics:
    """Of one layer's input, over all observations."""

    channel_max: NDArray[np.float32]
    """[K] largest magnitude of each channel."""
    num_rows: int
    """Vectors that were seen."""

    @property
    def max(self) -> float:
        """Largest magnitude of all."""
        return float(self.channel_max.max())


def calibrate(model: nn.Module, runs: Iterable[Callable[[], object]]) -> Mapping[str, Statistics]:
    """Run each of `runs`, which call `model`, and watch the inputs of its linear layers.

    Returns:
        Per layer that was called, by its name in `model`.

    Raises:
        ValueError: nothing ran, or an input was NaN or infinite.
    """
    channel_max: dict[str, Tensor] = {}
    num_rows: dict[str, int] = {}

    def watch(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def hook(_module: nn.Module, arguments: tuple[Tensor, ...]) -> None:
            rows = arguments[0].detach().reshape(-1, arguments[0].shape[-1]).abs().float()
            largest = rows.amax(dim=0)
            if not largest.isfinite().all():
                raise ValueError(f"the input of {name} is NaN or infinite during calibration")
            known = channel_max.get(name)
            channel_max[name] = largest if known is None else torch.maximum(known, largest)
            num_rows[name] = num_rows.get(name, 0) + len(rows)

        return hook

    handles = [
        module.register_forward_pre_hook(watch(name))
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear)
    ]
    try:
        with torch.no_grad():
            for run in runs:
                run()
    finally:
        for handle in handles:
            handle.remove()
    if not channel_max:
        raise ValueError("nothing to calibrate on: no linear layer was called")
    return {name: Statistics(channel_max[name].numpy(), num_rows[name]) for name in channel_max}
