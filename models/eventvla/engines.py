"""The engines of EventVLA: vision and language are the shared ones, both heads are here."""

from __future__ import annotations

import torch
from torch import nn

from models.eventvla.model import EventVLA
from models.networks.engines import EngineSpec, language_engines, vision_engines
from models.networks.parts import WHOLE, LayersPerPart
from runtime.declarations import Tensor


class ActEngine(nn.Module):
    """Picks the rows of the action tokens, by a matrix of zeros and ones, and makes actions."""

    def __init__(self, model: EventVLA) -> None:
        super().__init__()
        self.head = model.action_head

    def forward(self, places: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
        return self.head(places @ hidden)


class EventsEngine(nn.Module):
    """How likely each step of the chunk is an event, of the same rows."""

    def __init__(self, model: EventVLA) -> None:
        super().__init__()
        self.head = model.keyframe_head

    def forward(self, places: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
        return torch.sigmoid(self.head(places @ hidden)[:, 0])


def engines_of(
    model: EventVLA, grid: tuple[int, int], slots: int, layers: LayersPerPart = WHOLE
) -> dict[str, EngineSpec]:
    """All engines by name; a trunk in several parts has one engine for each, numbered."""
    c = model.config
    num_actions, _ = c.chunk
    rows = {
        "places": Tensor(shape=(num_actions, slots)),
        "hidden": Tensor(shape=(slots, c.language.hidden_size)),
    }
    engines = {
        **vision_engines(model.vlm.visual, grid, layers.get("vision")),
        **language_engines(model.vlm.model, slots, layers.get("language")),
        "act": EngineSpec(ActEngine(model), rows, {"actions": Tensor(shape=c.chunk)}),
    }
    if c.predicts_keyframes:
        likely = {"probabilities": Tensor(shape=(num_actions,))}
        engines["events"] = EngineSpec(EventsEngine(model), rows, likely)
    return engines
