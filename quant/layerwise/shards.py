"""The files of a language model's layers: in a checkpoint, and quantized, a shard for each layer.

In: a checkpoint, of which one layer at a time is read; or a quantized layer. Out: the layer in
float32; or its shard. The trade-off: int4 codes lie two to a byte in the file only, a layer that is
read back holds one to a byte, as the emulation computes with them.

A shard holds a layer under the checkpoint's names; in place of a quantized `weight` stand the
buffers of its `QuantLinear`. What is not quantized keeps the checkpoint's type.

Axes: K = inputs, N = outputs of a linear layer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from models.anchorvla4d.config import LanguageConfig, PolicyConfig
from models.anchorvla4d.language import DecoderLayer
from models.checkpoint import CheckpointError
from models.layouts.hugging_face import weight_files
from quant.apply import linear_layers
from quant.formats import Quantized
from quant.modules import QuantLinear
from runtime.errors import OutputError
from runtime.storage.files import replacing

LANGUAGE = "vlm.model."
LAYERS = LANGUAGE + "layers."


def read_config(checkpoint: Path) -> PolicyConfig:
    """What the checkpoint's policy is made of.

    Raises:
        CheckpointError: no config.json, or not one of a policy.
    """
    try:
        return PolicyConfig.from_json(checkpoint / "config.json")
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{checkpoint}: no usable config.json ({error})") from None


def locate(checkpoint: Path, shapes: Mapping[str, Sequence[int]]) -> dict[str, Path]:
    """The file of each tensor; reads headers only.

    Raises:
        CheckpointError: a file is damaged, or a tensor is missing or of another shape.
    """
    found: dict[str, Path] = {}
    wrong = []
    for file in weight_files(checkpoint):
        try:
            with safe_open(file, framework="pt") as tensors:
                for name in shapes.keys() & set(tensors.keys()):
                    found[name] = file
                    if (shape := tensors.get_slice(name).get_shape()) != list(shapes[name]):
                        wrong.append(f"{name} is {shape}, expected {list(shapes[name])}")
        except (SafetensorError, OSError) as error:
            raise CheckpointError(
                f"{file}: not a whole safetensors file ({error}); copy it again"
            ) from None
    wrong += [f"{name} is missing" for name in sorted(shapes.keys() - found.keys())]
    if wrong:
        raise CheckpointError(
            f"{checkpoint}: {len(wrong)} tensors of the language model do not fit config.json; "
            f"{wrong[0]}"
        )
    return found


def read_float_layer(
    prefix: str, config: LanguageConfig, files: Mapping[str, Path]
) -> tuple[DecoderLayer, dict[str, torch.dtype]]:
    """A layer of a checkpoint in float32, and the types in which its tensors are stored.

    Args:
        prefix: of the layer's names, `vlm.model.layers.0.`.
        files: of each tensor, as `locate` finds them.

    Raises:
        CheckpointError: a tensor holds NaN or infinity.
    """
    with torch.device("meta"):
        layer = DecoderLayer(config)
    weights, types = {}, {}
    for name in layer.state_dict():
        with safe_open(files[prefix + name], framework="pt") as tensors:
            stored = tensors.get_tensor(prefix + name)
        if not torch.isfinite(stored).all():
            raise CheckpointError(
                f"{files[prefix + name]}: {prefix + name} holds NaN or infinity; copy it again"
            )
        weights[name], types[name] = stored.float(), stored.dtype
    layer.load_state_dict(weights, assign=True)
    return layer.eval().requires_grad_(False), types


def write_layer(
    shard: Path, prefix: str, layer: DecoderLayer, types: Mapping[str, torch.dtype]
) -> int:
    """Write a layer, quantized or not; returns the bytes of its tensors.

    Args:
        prefix: of the layer's names, `vlm.model.layers.0.`.
        types: in which to store what is not quantized.
    """
    quantized = {n: m for n, m in layer.named_modules() if isinstance(m, QuantLinear)}
    int4 = {f"{name}.codes" for name, module in quantized.items() if module.bits == 4}
    tensors = {}
    for name, value in layer.state_dict().items():
        if name in int4:
            value = torch.from_numpy(pack_int4(value.numpy()))
        tensors[prefix + name] = value.to(types.get(name, value.dtype))
    save_tensors(shard, tensors)
    return sum(tensor.nbytes for tensor in tensors.values())


def read_layer(shard: Path, config: LanguageConfig) -> DecoderLayer:
    """A layer as `write_layer` wrote it; it computes in float32.

    Raises:
        CheckpointError: not such a shard.
    """
    try:
        stored = load_file(shard)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{shard}: not a whole safetensors file ({error})") from None
    stored = {name.removeprefix(LAYERS).partition(".")[2]: t for name, t in stored.items()}
    with torch.device("meta"):
        layer = DecoderLayer(config)
    for name in linear_layers(layer):
        if f"{name}.codes" in stored:
            start = len(name) + 1
            parts = {n[start:]: stored.pop(n) for n in list(stored) if n.startswith(f"{name}.")}
            layer.set_submodule(name, _quant_linear(parts))
    weights = {name: value.float() for name, value in stored.items()}
    unlike = layer.load_state_dict(weights, strict=False, assign=True)
    if unlike.unexpected_keys or any(t.is_meta for t in layer.state_dict().values()):
        raise CheckpointError(f"{shard}: not a layer of this model: {unlike}")
    return layer.requires_grad_(False)


def pack_int4(codes_KN: NDArray[np.int8]) -> NDArray[np.uint8]:
    """[K, ceil(N / 2)]: two neighbours to a byte, the first in the low half, as ONNX does it."""
    even = np.pad(codes_KN, ((0, 0), (0, codes_KN.shape[1] % 2))).view(np.uint8) & np.uint8(0xF)
    return even[:, ::2] | even[:, 1::2] << np.uint8(4)


def unpack_int4(packed: NDArray[np.uint8], num_outputs: int) -> NDArray[np.int8]:
    """[K, num_outputs]: the codes again, -8 to 7."""
    nibbles = np.stack([packed & 0xF, packed >> 4], axis=-1).reshape(len(packed), -1)
    codes_KN = ((nibbles ^ 8).astype(np.int8) - np.int8(8))[:, :num_outputs]
    return np.ascontiguousarray(codes_KN)


def shard_path(out: Path, index: int) -> Path:
    """Of a quantized layer."""
    return out / f"layer-{index:02d}.safetensors"


def save_tensors(path: Path, tensors: Mapping[str, Tensor], state: str | None = None) -> None:
    """Whole or not at all, with `state` as metadata."""
    with replacing(path) as partial:
        try:
            save_file(dict(tensors), partial, None if state is None else {"state": state})
        except SafetensorError as error:
            raise OutputError(f"{path}: cannot be written: {error}; free some space") from error
        partial.chmod(0o644)  # the library writes it for its owner only


def _quant_linear(parts: Mapping[str, Tensor]) -> QuantLinear:
    """From the tensors in a shard."""
    codes, scales = parts["codes"].numpy(), parts["scales"].numpy()
    if codes.dtype == np.uint8:
        codes = unpack_int4(codes, scales.shape[-1])
    blocks = len(scales) if scales.ndim == 2 else 0
    step, factor = parts.get("activation_scale"), parts.get("input_factor")
    bias = parts.get("bias")
    kept = (parts["kept"].numpy(), parts["kept_weight"].numpy()) if "kept" in parts else None
    return QuantLinear(
        Quantized(codes, scales, 0 if blocks else 1, len(codes) // blocks if blocks else None),
        None if bias is None else nn.Parameter(bias.float(), requires_grad=False),
        None if step is None else float(step),
        input_factor=None if factor is None else factor.numpy(),
        per_token="token_floor" in parts,
        kept=kept,
    )
