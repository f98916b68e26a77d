"""A quantized linear layer: computes in torch what its engine will, and exports as Q/DQ.

The two operators below are known to the exporter (`export.engines.onnx_file`), which writes them as
ONNX QuantizeLinear and DequantizeLinear instead of tracing into them. So precision is written into
the graph where the module says it, and nothing has to be found again in a finished file.

Axes: K = inputs, N = outputs, J = inputs that stay in float.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from models.stored import StoredTensor
from quant.formats import Quantized


@torch.library.custom_op("anchorvla::fake_quantize", mutates_args=())
def fake_quantize(x: Tensor, scale: Tensor) -> Tensor:
    """`x` through int8 and back: round half to even, saturate at -128 and 127; one scale."""
    return torch.clamp(torch.round(x / scale), -128, 127) * scale


@fake_quantize.register_fake
def _(x: Tensor, scale: Tensor) -> Tensor:
    return torch.empty_like(x)


@torch.library.custom_op("anchorvla::dequantize", mutates_args=())
def dequantize(codes: Tensor, scales: Tensor, block: int) -> Tensor:
    """Codes [K, N] times their scales: [] or [N] if `block` is 0, else [K / block, N]."""
    return codes.to(scales.dtype) * (scales.repeat_interleave(block, 0) if block else scales)


@dequantize.register_fake
def _(codes: Tensor, scales: Tensor, block: int) -> Tensor:
    return torch.empty(codes.shape, dtype=scales.dtype, device=codes.device)


BUFFERS = (
    "codes", "scales", "activation_scale", "input_factor", "token_floor", "kept", "kept_weight",
)  # fmt: skip
TOKEN_FLOOR = 2.0**-20
"""Least magnitude that a token is divided by: one of zeros stays zeros. A bfloat16 number."""


class QuantLinear(nn.Module):
    """In place of an `nn.Linear`."""

    codes: Tensor
    scales: Tensor
    activation_scale: Tensor | None
    input_factor: Tensor | None
    kept: Tensor | None
    kept_weight: Tensor | None
    token_floor: Tensor | None

    def __init__(
        self,
        weight: Quantized,
        bias: Tensor | None,
        activation_scale: float | None,
        *,
        input_factor: NDArray[np.float32] | None = None,
        per_token: bool = False,
        kept: tuple[NDArray[np.int64], NDArray[np.float32]] | None = None,
    ) -> None:
        """
        Args:
            weight: [K, N] as `quant.formats` makes it; K may be padded.
            bias: [N] float32.
            activation_scale: int8 step of the input; None leaves the input as it is.
            input_factor: [K] what the input is multiplied with first, where the weight was divided
                by it (SmoothQuant, AWQ). A factor of 0 takes a channel out.
            per_token: each vector is divided by its own largest magnitude before it meets the step,
                and its outputs are multiplied with it: one step then suits all of them, and none is
                cut off.
            kept: channels [J] that are not quantized, and their rows of the weight [J, N].

        Raises:
            ValueError: the scale is not a positive number.
        """
        super().__init__()
        if activation_scale is not None and not 0 < activation_scale < float("inf"):
            raise ValueError(f"an activation scale must be positive, got {activation_scale}")
        self.bits, self.block = weight.bits, weight.block or 0
        self.register_buffer("codes", torch.from_numpy(weight.codes.copy()))
        self.register_buffer("scales", torch.from_numpy(weight.scales.copy()))
        self.bias = bias
        scale = None if activation_scale is None else torch.tensor(activation_scale)
        self.register_buffer("activation_scale", scale)
        factor = None if input_factor is None else torch.from_numpy(input_factor.copy())
        self.register_buffer("input_factor", factor)
        floor = torch.tensor(TOKEN_FLOOR) if per_token else None
        self.register_buffer("token_floor", floor)
        self.register_buffer("kept", None if kept is None else torch.from_numpy(kept[0].copy()))
        rows = None if kept is None else torch.from_numpy(kept[1].copy())
        self.register_buffer("kept_weight", rows)

    @classmethod
    def of(
        cls, buffers: Mapping[str, Tensor], bias: Tensor | None, *, bits: int, block: int
    ) -> QuantLinear:
        """A layer of the buffers that another one had."""
        made = cls.__new__(cls)
        nn.Module.__init__(made)
        made.bits, made.block, made.bias = bits, block, bias
        for name in BUFFERS:
            made.register_buffer(name, buffers.get(name))
        return made

    def forward(self, x: Tensor) -> Tensor:
        whole = x
        if self.input_factor is not None:
            x = x * self.input_factor
        if missing := len(self.codes) - x.shape[-1]:
            x = functional.pad(x, (0, missing))
        size = None
        if self.token_floor is not None:
            size = torch.maximum(x.abs().amax(dim=-1, keepdim=True), self.token_floor)
            x = x / size
        if self.activation_scale is not None:
            x = fake_quantize(x, self.activation_scale)
        out = x @ self._weight()
        if size is not None:
            out = out * size
        if self.kept is not None and self.kept_weight is not None:
            out = out + whole.index_select(-1, self.kept) @ self.kept_weight
        return out if self.bias is None else out + self.bias

    def _weight(self) -> Tensor:
        """[K, N]. What lies on disk is multiplied out once, while the shelf holds it."""
        if isinstance(self.codes, StoredTensor):
            num_bytes = self.codes.numel() * self.scales.element_size()
            return self.codes.made(
                num_bytes, lambda codes: dequantize(codes, self.scales, self.block)
            )
        return dequantize(self.codes, self.scales, self.block)
