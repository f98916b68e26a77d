"""The engines of EventVLA: all but that of the keyframe head are shared ones."""

from __future__ import annotations

import torch
from torch import nn

from models.action_tokens import act_engine, picked
from models.eventvla.model import EventVLA
from models.networks.engines import EngineSpec, language_engines, vision_engines
from models.networks.parts import WHOLE, LayersPerPart
from runtime.declarations import Tensor


class EventsEngine(nn.Module):
    """How likely each step of the chunk is an event, of the same rows."""

    def __init__(self, model: EventVLA) -> None:
        super().__init__()
        self.head = model.keyframe_head

    def forward(self, places: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
        # Not `Sigmoid`, whose approximation in ONNX Runtime is 2e-4 off where nothing is likely.
        return 1 / (1 + torch.exp(-self.head(places @ hidden)[:, 0]))


def engines_of(
    model: EventVLA, grid: tuple[int, int], slots: int, layers: LayersPerPart = WHOLE
) -> dict[str, EngineSpec]:
    """All engines by name; a trunk in several parts has one engine for each, numbered."""
    c = model.config
    engines = {
        **vision_engines(model.vlm.visual, grid, layers.get("vision")),
        **language_engines(model.vlm.model, slots, layers.get("language")),
        "act": act_engine(model.action_head, c, slots),
    }
    if c.predicts_keyframes:
        likely = {"probabilities": Tensor(shape=c.chunk[:1])}
        engines["events"] = EngineSpec(EventsEngine(model), picked(c, slots), likely)
    return engines
