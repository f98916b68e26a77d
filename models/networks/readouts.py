"""Linear readouts of a decoder's hidden states: engines of their own, which only a leaf runs.

A row of weights says which of a call's hidden states are read: all of the last token, or an equal
part of each image token. The layer itself is the same for both.

Axes: S = slots of a call, D = width of the language model, W = numbers of a readout.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from models.networks.engines import EngineSpec
from models.networks.readout_config import ReadoutConfig
from models.networks.work import Work, layers_of
from runtime.declarations import Output
from runtime.declarations import Tensor as Declared


def readout_layers(readouts: Sequence[ReadoutConfig], width: int) -> nn.ModuleDict:
    """One layer each, by name.

    Args:
        width: D.
    """
    return nn.ModuleDict({r.name: nn.Linear(width, r.width) for r in readouts})


class ReadoutEngine(nn.Module):
    """Rows that are weighted and added up, through a linear layer."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, weights: Tensor, hidden: Tensor) -> Tensor:
        """[1, S], [S, D] -> [W]."""
        read: Tensor = self.layer(weights @ hidden)
        return read[0]


def engine_name(readout: ReadoutConfig) -> str:
    """Of its engine, and of the stage that calls it."""
    return f"{readout.name}_readout"


def readout_engines(
    readouts: Sequence[ReadoutConfig], layers: nn.ModuleDict, slots: int, width: int
) -> dict[str, EngineSpec]:
    """An engine for each."""
    ports = {"weights": Declared(shape=(1, slots)), "hidden": Declared(shape=(slots, width))}
    return {
        engine_name(r): EngineSpec(
            ReadoutEngine(layers[r.name]), ports, {"value": Declared(shape=(r.width,))}
        )
        for r in readouts
    }


def readout_work(
    readouts: Sequence[ReadoutConfig], name: str, slots: int, width: int
) -> dict[str, Work]:
    """What each engine multiplies.

    Args:
        name: of the layers, in the policy.
    """
    return {
        engine_name(r): Work(
            layers=layers_of({f"{name}.{r.name}": (width, r.width)}, 1),
            attention_flops=2 * slots * width,
            beside=0,
        )
        for r in readouts
    }


def readout_outputs(readouts: Sequence[ReadoutConfig]) -> dict[str, Output]:
    """As a graph declares them."""
    return {
        r.name: Output(axes=("element",), units=(r.unit,) * r.width, names=r.elements)
        for r in readouts
    }


def mean_of(rows: range, slots: int) -> Tensor:
    """[1, S] weights that take the mean of some rows of a call."""
    weights = torch.zeros(1, slots)
    weights[:, rows.start : rows.stop] = 1 / len(rows)
    return weights
