"""Shards hold int4 codes as ONNX does, and what is no shard is refused."""

import numpy as np
import pytest
import torch
from ml_dtypes import int4
from onnx import numpy_helper
from safetensors.torch import save_file

from models.anchorvla4d.presets import demo
from models.checkpoint import CheckpointError
from quant.layerwise.shards import pack_int4, read_layer, unpack_int4


@pytest.mark.parametrize("num_outputs", [1, 6, 7])
def test_int4_codes_read_back_and_lie_as_in_onnx(num_outputs):
    codes = np.random.default_rng(0).integers(-8, 8, (5, num_outputs)).astype(np.int8)
    packed = pack_int4(codes)
    assert packed.shape == (5, -(-num_outputs // 2))
    assert np.array_equal(unpack_int4(packed, num_outputs), codes)
    if num_outputs % 2 == 0:
        assert packed.tobytes() == numpy_helper.from_array(codes.astype(int4)).raw_data


def test_a_shard_of_something_else_is_refused(tmp_path):
    save_file({"vlm.model.norm.weight": torch.ones(128)}, tmp_path / "norm.safetensors")
    with pytest.raises(CheckpointError, match="not a layer of this model"):
        read_layer(tmp_path / "norm.safetensors", demo().language)
    (tmp_path / "half.safetensors").write_bytes(b"half")
    with pytest.raises(CheckpointError, match="not a whole safetensors file"):
        read_layer(tmp_path / "half.safetensors", demo().language)
