"""What policies that read their actions off the rows of action tokens have in common: an engine and
its place in the graph. A head makes an action of each row.
"""

from __future__ import annotations

import torch
from torch import nn

from models.networks.engines import EngineSpec
from models.policy_config import PolicyConfig
from models.prompt_parts import PromptParts
from models.split import GraphBuilder
from runtime.declarations import Tensor


class ActEngine(nn.Module):
    """Picks the rows of the action tokens, by a matrix of zeros and ones, and makes actions."""

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.head = head

    def forward(self, places: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
        return self.head(places @ hidden)


def picked(c: PolicyConfig, slots: int) -> dict[str, Tensor]:
    """What an engine takes that picks these rows."""
    return {
        "places": Tensor(shape=(c.chunk[0], slots)),
        "hidden": Tensor(shape=(slots, c.language.hidden_size)),
    }


def act_engine(head: nn.Module, c: PolicyConfig, slots: int) -> EngineSpec:
    """Of the head that makes the chunk."""
    return EngineSpec(ActEngine(head), picked(c, slots), {"actions": Tensor(shape=c.chunk)})


def act(build: GraphBuilder, parts: PromptParts, num_new: int) -> dict[str, str]:
    """`suffix_hidden` -> `made_actions`.

    Args:
        num_new: tokens of the call `suffix` before the text.

    Returns:
        Tensors of the ports that `picked` names, for engines that read the same rows.
    """
    build.tensor("places", build.engines["act"].inputs["places"].shape)
    build.call(
        "places",
        {"ids": "instruction"},
        {"places": "places"},
        {"id": parts.action_id, "num_new": num_new},
    )
    rows = {"places": "places", "hidden": "suffix_hidden"}
    build.engine("act", "act", rows, {"actions": "made_actions"})
    return rows
