"""The split's torch modules as a backend of the runtime.

The same interpreter that runs a bundle runs the modules it was exported from; what they compute is
what each exported engine is compared with, and what the bundle keeps as golden data.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch

from models.networks.engines import EngineSpec
from runtime.declarations import Tensor
from runtime.engine import Memory


class TorchEngine:
    """Implements `runtime.engine.Engine`."""

    def __init__(self, spec: EngineSpec) -> None:
        self.module = spec.module
        self.inputs: Mapping[str, Tensor] = spec.inputs
        self.outputs: Mapping[str, Tensor] = spec.outputs

    def bind(
        self, inputs: Mapping[str, str], outputs: Mapping[str, str], memory: Memory
    ) -> Callable[[], None]:
        arguments = [torch.from_numpy(memory.host(inputs[port])) for port in self.inputs]
        targets = [torch.from_numpy(memory.host(outputs[port])) for port in self.outputs]

        @torch.no_grad()
        def run() -> None:
            results = self.module(*arguments)
            for target, result in zip(
                targets, results if isinstance(results, tuple) else (results,), strict=True
            ):
                target.copy_(result)

        return run
