"""Qwen3-VL's engines as files: what ONNX Runtime makes of them, and what they hold."""

import onnx
import pytest
import torch

from export.engines.counts import count
from export.engines.onnx_file import write_onnx
from models.networks.engines import language_engines, vision_engines
from models.networks.work import Tokens, language_work, vision_work
from runtime import prompt
from runtime.backends.onnxruntime_module import ort
from tests.oracles import MODULE, normal, relative_error
from tests.qwen3 import levels_of, pair_of, small

GRID, SLOTS = (6, 10), 20


@pytest.fixture(scope="module")
def pair():
    return pair_of(small())


@pytest.fixture(scope="module")
def engines(pair, tmp_path_factory):
    """Trunk, layers per part -> (engine, its file, layers in it)."""
    folder = tmp_path_factory.mktemp("engines")
    made = {}

    def of(trunk, per_part):
        if (trunk, per_part) not in made:
            specs = (
                vision_engines(pair.ours.visual, GRID, per_part)
                if trunk == "vision"
                else language_engines(pair.ours.model, SLOTS, per_part)
            )
            made[trunk, per_part] = [
                (spec, write_onnx(spec, folder / f"{per_part}" / f"{name}.onnx", opset=18).path)
                for name, spec in specs.items()
            ]
        return made[trunk, per_part]

    return of


def given(pair, spec):
    """Numbers for every port: a call that stands behind 11 cached tokens, and has 17 of its own."""
    drawn = {p: normal(*t.shape, seed=i) for i, (p, t) in enumerate(spec.inputs.items())}
    if "mask" in drawn:
        drawn["mask"] = torch.from_numpy(prompt.attention_mask(11, SLOTS, 17, SLOTS))
        levels = levels_of(pair, torch.arange(SLOTS) % 3 == 1)
        drawn |= {port: levels[int(port[-1])] for port in drawn if port.startswith("deepstack")}
    return drawn


@pytest.mark.parametrize("per_part", [None, 2])
@pytest.mark.parametrize("trunk", ["vision", "language"])
@torch.no_grad()
def test_files_put_out_what_their_modules_do(pair, engines, trunk, per_part):
    found = engines(trunk, per_part)
    assert len(found) == (1 if per_part is None else 2)
    for spec, path in found:
        drawn = given(pair, spec)
        session = ort.InferenceSession(path)
        got = session.run(None, {port: value.numpy() for port, value in drawn.items()})
        assert [out.name for out in session.get_outputs()] == list(spec.outputs)
        for port, one, want in zip(spec.outputs, got, spec.module(*drawn.values()), strict=True):
            assert one.shape == spec.outputs[port].shape
            assert relative_error(one, want) <= MODULE, port


@pytest.mark.parametrize("per_part", [None, 2])
@pytest.mark.parametrize("trunk", ["vision", "language"])
def test_files_multiply_and_hold_what_arithmetic_says(pair, engines, trunk, per_part):
    for index, (_, path) in enumerate(engines(trunk, per_part)):
        layers = range(4) if per_part is None else range(2 * index, 2 * index + 2)
        work = (
            vision_work("v", pair.vision, layers, GRID)
            if trunk == "vision"
            else language_work("l", pair.language, layers, Tokens.padded(SLOTS))
        )
        counts = count(path)
        assert counts.attention_flops == work.attention_flops
        assert counts.by_weights == work.flops - work.attention_flops
        constants = onnx.load(path, load_external_data=False).graph.initializer
        floats = [t for t in constants if t.data_type == onnx.TensorProto.FLOAT]
        numbers = sum(int(torch.tensor(list(t.dims)).prod()) for t in floats if t.dims)
        # Scalars and epsilons aside, nothing but weights, interpolated positions, rotary tables.
        assert 0 <= numbers - work.parameters - work.tables <= 8
        assert not any(49 in t.dims for t in constants)
