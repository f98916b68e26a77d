"""The engines of QwenGR00T: vision and language are the shared ones, those of the head are here."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from models.declared import noise_shape
from models.networks.engines import COEFFICIENT_ROW, EngineSpec, language_engines, vision_engines
from models.networks.flow_dit import euler_step
from models.networks.parts import WHOLE, LayersPerPart
from models.qwengr00t.model import QwenGR00T
from runtime.declarations import Tensor


class CrossKVEngine(nn.Module):
    """Keys and values of a language call's tokens, for all steps and all blocks that attend to
    them."""

    def __init__(self, model: QwenGR00T) -> None:
        super().__init__()
        self.head = model.action_head

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return self.head.keys_values(hidden)


class StateEngine(nn.Module):
    """The row of the state."""

    def __init__(self, model: QwenGR00T) -> None:
        super().__init__()
        self.head = model.action_head

    def forward(self, state: torch.Tensor) -> torch.Tensor:
        row = self.head.state_row(state)
        assert row is not None
        return row


class EulerEngine(nn.Module):
    """One step of the sampler, its arithmetic and inpainting included.

    Of the action encoder's second layer it has the half that multiplies the action, as a matrix of
    its own: a compiler would slice the whole one in every step.
    """

    def __init__(self, model: QwenGR00T) -> None:
        super().__init__()
        self.head = model.action_head
        self.register_buffer("own", model.action_head.action_encoder.own.detach().contiguous())
        self.own: torch.Tensor

    def forward(
        self,
        x: torch.Tensor,
        keys_values: torch.Tensor,
        mask: torch.Tensor,
        step: torch.Tensor,
        coefficients: torch.Tensor,
        leftover: torch.Tensor,
        weights: torch.Tensor,
        state_row: torch.Tensor | None = None,
    ) -> torch.Tensor:
        encoder = self.head.action_encoder
        rows = functional.silu(functional.linear(encoder.layer1(x), self.own) + step[-1])
        velocity = self.head.velocity_of_rows(
            encoder.layer3(rows), keys_values, mask, step, state_row
        )
        return euler_step(x, velocity, coefficients, leftover, weights)


def engines_of(
    model: QwenGR00T,
    grid: tuple[int, int],
    slots: int,
    layers: LayersPerPart = WHOLE,
    samples: int = 1,
) -> dict[str, EngineSpec]:
    """All engines by name; a trunk in several parts has one engine for each, numbered.

    Args:
        samples: chunks that are sampled at once. Of more than one, K, `x` is [K, T, A].
    """
    c = model.config
    head, (steps, _) = c.head, c.chunk
    chunk, x = (Tensor(shape=noise_shape(c, k)) for k in (1, samples))
    keys_values = (head.num_cross, 2, head.width)
    row = Tensor(shape=(1, head.width))
    engines = {
        **vision_engines(model.vlm.visual, grid, layers.get("vision")),
        **language_engines(model.vlm.model, slots, layers.get("language")),
        "cross_kv": EngineSpec(
            CrossKVEngine(model),
            {"hidden": Tensor(shape=(slots, c.language.hidden_size))},
            {"keys_values": Tensor(shape=(slots, *keys_values))},
        ),
    }
    if c.takes_state:
        state = Tensor(shape=(c.state_dim,))
        engines["state"] = EngineSpec(StateEngine(model), {"state": state}, {"row": row})
    euler = {
        "x": x,
        "keys_values": Tensor(shape=(2 * slots, *keys_values)),
        "mask": Tensor(shape=(2 * slots,)),
        "step": Tensor(shape=(head.step_rows, head.width)),
        "coefficients": Tensor(shape=(COEFFICIENT_ROW,)),
        "leftover": chunk,
        "weights": Tensor(shape=(steps, 1)),
    }
    if c.takes_state:
        euler["state_row"] = row
    return engines | {"euler": EngineSpec(EulerEngine(model), euler, {"x_next": x}, ("own",))}
