"""Quantized layers on disk, each in a file whose name says what it was made of.

In: a key over everything that codes and scales depend on, and what makes the layer. Out: the layer,
its codes read from the file (`models.stored`). A file that is there is not made again: a run that
was cut off goes on at its next layer, and another recipe makes the layers that it changes. The
trade-off: a key reads the weight, which costs a second for a gigabyte.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from models.stored import StoredTensor, map_of
from quant.calibrate import Statistics
from quant.modules import QuantLinear
from quant.recipes import Rule
from runtime.storage.files import replacing

SOURCES = ("apply.py", "formats.py", "methods.py", "modules.py")
NUMBERS = "bits and block"
"""In one entry: several are written in any order, and the same layer is to be the same file."""
INLINE_BYTES = 4096
"""Smaller tensors stay in memory."""


def key_of(
    weight_NK: Tensor, rule: Rule, seen: Statistics | None, factor_K: NDArray[np.float32] | None
) -> str:
    """Of the arguments of `quant.apply.quantize_layer`, and of the code that works on them."""
    digest = hashlib.sha256(_code())
    digest.update(repr((rule.format, rule.method, tuple(weight_NK.shape))).encode())
    arrays = [weight_NK.detach().float().contiguous().numpy()]
    arrays += [] if seen is None else [seen.channel_max, seen.rows]
    arrays += [] if factor_K is None else [factor_K]
    for array in arrays:
        digest.update(f"{array.shape}".encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def kept(file: Path, make: Callable[[], QuantLinear], bias: Tensor | None) -> QuantLinear:
    """The layer of a file, which is made if it is not there.

    Args:
        bias: of the layer; the file does not hold it.
    """
    if not file.is_file():
        _write(make(), file)
    with safe_open(file, framework="pt") as tensors:
        bits, block = map(int, tensors.metadata()[NUMBERS].split())
        mapped = {name: tensors.get_tensor(name) for name in tensors.keys()}  # noqa: SIM118
    buffers = {
        name: value.clone()
        if value.nbytes < INLINE_BYTES
        else StoredTensor(value.shape, value.dtype, map_of(file, name))
        for name, value in mapped.items()
    }
    return QuantLinear.of(buffers, bias, bits=bits, block=block)


def _write(layer: QuantLinear, file: Path) -> None:
    with replacing(file) as partial:
        numbers = {NUMBERS: f"{layer.bits} {layer.block}"}
        save_file(dict(layer.named_buffers(recurse=False)), partial, numbers)


@functools.cache
def _code() -> bytes:
    """What computes codes: sources of this package, and the libraries under them."""
    sources = (Path(__file__).with_name(name) for name in SOURCES)
    versions = f"numpy {np.__version__} torch {torch.__version__}".encode()
    return b"".join((versions, *(source.read_bytes() for source in sources)))
