"""The engines of QwenOFT, all of them shared ones."""

from __future__ import annotations

from models.action_tokens import act_engine
from models.networks.engines import EngineSpec, language_engines, vision_engines
from models.networks.parts import WHOLE, LayersPerPart
from models.qwenoft.model import QwenOFT


def engines_of(
    model: QwenOFT, grid: tuple[int, int], slots: int, layers: LayersPerPart = WHOLE
) -> dict[str, EngineSpec]:
    """All engines by name; a trunk in several parts has one engine for each, numbered."""
    c = model.config
    return {
        **vision_engines(model.vlm.visual, grid, layers.get("vision")),
        **language_engines(model.vlm.model, slots, layers.get("language")),
        "act": act_engine(model.action_head, c, slots),
    }
