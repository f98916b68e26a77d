"""The engines of QwenOFT: vision and language are the shared ones, the head is here."""

from __future__ import annotations

import torch
from torch import nn

from models.networks.engines import EngineSpec, language_engines, vision_engines
from models.networks.parts import WHOLE, LayersPerPart
from models.qwenoft.model import QwenOFT
from runtime.declarations import Tensor


class ActEngine(nn.Module):
    """Picks the rows of the action tokens, by a matrix of zeros and ones, and makes actions."""

    def __init__(self, model: QwenOFT) -> None:
        super().__init__()
        self.head = model.action_head

    def forward(self, places: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
        return self.head(places @ hidden)


def engines_of(
    model: QwenOFT, grid: tuple[int, int], slots: int, layers: LayersPerPart = WHOLE
) -> dict[str, EngineSpec]:
    """All engines by name; a trunk in several parts has one engine for each, numbered."""
    c = model.config
    return {
        **vision_engines(model.vlm.visual, grid, layers.get("vision")),
        **language_engines(model.vlm.model, slots, layers.get("language")),
        "act": EngineSpec(
            ActEngine(model),
            {
                "places": Tensor(shape=(c.head.action_horizon, slots)),
                "hidden": Tensor(shape=(slots, c.language.hidden_size)),
            },
            {"actions": Tensor(shape=c.chunk)},
        ),
    }
