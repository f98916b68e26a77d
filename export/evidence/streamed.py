"""Networks of any depth in the memory of a layer: weights come when a layer runs, and go again.

In: a module on the meta device, and what gives a weight by its name. Out: the same module, ready
to be called. The trade-off: a layer that runs again is given its weights again, so time is paid for
memory. It is the module's own code that runs, whoever wrote it: no loop over layers is written a
second time, where it could be wrong a second time.

The other half is float64 everywhere, for networks whose authors wrote float32 into some places.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from models.policy_config import PolicyConfig
from models.random_weights import outlier_gain, random_tensor
from models.sources import parameter_shapes

Weights = Callable[[str], Tensor]
"""Published name -> float32 tensor."""
NORMS_WITH_OUTLIERS = ("layernorm.weight", ".norm1.weight", ".norm2.weight")
"""How the names of norms in front of a layer end."""
TABLE = "vlm.model.embed_tokens.weight"


class RandomWeights:
    """Seeded random weights of a policy, drawn one at a time, with outliers.

    The numbers are those of `models.random_weights.random_tensor`, but that some channels leave
    each norm in front of a layer 30 to 60 times as large as the others, the same in all layers.
    """

    def __init__(
        self,
        config: PolicyConfig,
        *,
        seed: int = 0,
        outlier_channels: int = 8,
        kept: tuple[str, ...] = ("action_head.", TABLE),
    ) -> None:
        """
        Args:
            kept: how names begin of what stays in memory once it was drawn: every denoise step
                reads the head.
        """
        self._shapes = parameter_shapes(config)
        self._seed, self._outlier_channels = seed, outlier_channels
        self._starts, self._kept = kept, dict[str, Tensor]()

    @property
    def names(self) -> Iterable[str]:
        """Of all tensors."""
        return self._shapes.keys()

    def __call__(self, name: str) -> Tensor:
        """The float32 tensor of this name."""
        if (kept := self._kept.get(name)) is not None:
            return kept
        shape, gain = self._shapes[name], None
        if name.endswith(NORMS_WITH_OUTLIERS):
            gain = outlier_gain(shape[0], self._seed, self._outlier_channels)
        value = random_tensor(name, shape, self._seed, gain=gain)
        if name.startswith(self._starts):
            self._kept[name] = value
        return value


def stream(
    model: nn.Module,
    weights: Weights,
    published: Mapping[str, str],
    dtype: torch.dtype = torch.float32,
) -> None:
    """Let `model` hold the weights of what is in a layer while that runs, and no longer.

    Layers are the entries of its `ModuleList`s; what is in one are its children. Weights outside of
    layers are loaded here and stay. Tables of embeddings keep their type, their rows take `dtype`.

    Args:
        model: on the meta device.
        published: name of a parameter or buffer in `model` -> its published name.
    """
    streamed: set[str] = set()
    for path, layers in list(model.named_modules()):
        if isinstance(layers, nn.ModuleList):
            for number, layer in layers.named_children():
                for name, child in layer.named_children():
                    prefix = f"{path}.{number}.{name}."
                    names = {n: published[prefix + n] for n in child.state_dict()}
                    _stream_one(child, weights, names, dtype)
                    streamed |= {prefix + n for n in names}
    rest = {}
    for name in model.state_dict().keys() - streamed:
        owner = model.get_submodule(name.rpartition(".")[0])
        value = weights(published[name])
        rest[name] = value if isinstance(owner, nn.Embedding) else value.to(dtype)
    model.load_state_dict(rest, strict=False, assign=True)
    for module in model.modules():
        if isinstance(module, nn.Embedding):
            module.register_forward_hook(lambda _module, _inputs, rows: rows.to(dtype))


def _stream_one(
    module: nn.Module, weights: Weights, names: Mapping[str, str], dtype: torch.dtype
) -> None:
    if not names:
        return
    empty = dict(module.state_dict())

    def arrive(module: nn.Module, _inputs: Any) -> None:
        values = {own: weights(name).to(dtype) for own, name in names.items()}
        module.load_state_dict(values, assign=True)

    def leave(module: nn.Module, _inputs: Any, _output: Any) -> None:
        module.load_state_dict(empty, assign=True)

    module.register_forward_pre_hook(arrive)
    module.register_forward_hook(leave, always_call=True)


class Float64(TorchDispatchMode):
    """Within, whatever would become float32 becomes float64."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        def wider(value: Any) -> Any:
            return torch.float64 if value is torch.float32 else value

        changed = {name: wider(value) for name, value in (kwargs or {}).items()}
        return func(*map(wider, args), **changed)
