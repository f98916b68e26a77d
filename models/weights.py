"""The weights of a checkpoint: which layout a folder has, and a model that takes every tensor.

Goes in: a checkpoint folder and a configuration. Comes out: where each parameter is read
(`models.sources`), or the model with float32 weights, which stay on disk until something computes
with them (`models.stored`). The trade-off: nothing is skipped but what is known not to be used, and
that is told; any other tensor too many, too few, of another shape, another type or not finite is an
error with its name.
"""

from __future__ import annotations

import os
from pathlib import Path

import torch
from torch import nn

from models.anchorvla4d.config import PolicyConfig
from models.errors import CheckpointError
from models.layouts import hugging_face, megatron
from models.sources import Misfits, Weights, is_finite
from models.stored import StoredTensor, put


def open_weights(path: Path, config: PolicyConfig) -> Weights:
    """Where each parameter of the policy in a folder is read. Reads headers only.

    Raises:
        CheckpointError: no weights, files that are missing or damaged, or tensors that do not fit,
            all of them at once.
    """
    if megatron.is_in(path):
        if hugging_face.is_in(path):
            raise CheckpointError(
                f"{path}: holds both safetensors and shards of Megatron; leave one of the two"
            )
        return megatron.open_weights(path, config)
    return hugging_face.open_weights(path, config)


def load_weights(model: nn.Module, weights: Weights) -> None:
    """Give `model`, which is on the meta device, its parameters: checked, and left on disk.

    Raises:
        CheckpointError: some hold NaN or infinity.
    """
    misfits = Misfits()
    for name, source in weights.items():
        if not is_finite(source.read().float()):
            names = dict.fromkeys(stored.name for stored in source.stored)
            misfits.broken.append(" + ".join(names))
        put(model, name, StoredTensor(source.shape, torch.float32, source.read))
    misfits.refuse(Path(os.path.commonpath([file.parent for file in weights.files])))
