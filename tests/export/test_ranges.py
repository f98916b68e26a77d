"""The range scan finds what float16 cannot hold, and an export keeps that in float32."""

import ast

import numpy as np
import onnx
import pytest
import torch
from torch import nn

import runtime
from export.build import build
from export.engines import engine as engines
from export.engines.onnx_file import export_graph, save
from export.engines.ranges import leaves_float16, scan_ranges
from export.errors import ExportError
from tests.conftest import copy_checkpoint
from tests.export.conftest import cut_config, normal, spec_of

ROWS, WIDTH = 16, 64
OVERFLOW = 3e4
"""Times that a hidden layer's numbers are made larger: those of the demo then reach 1e6."""


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.act = nn.Linear(WIDTH, WIDTH), nn.GELU()
        self.second = nn.Linear(WIDTH, 8)

    def forward(self, x):
        return self.second(self.act(self.first(x)))


@pytest.fixture
def network(tmp_path):
    """A module, its file, and for each layer the name of the tensor that it makes."""
    module = Network().requires_grad_(False)
    model = export_graph(spec_of(module, ROWS, WIDTH), opset=18)
    made = {}
    for node in model.graph.node:
        notes = {entry.key: entry.value for entry in node.metadata_props}
        path = ast.literal_eval(notes["pkg.torch.onnx.name_scopes"])[-2]
        made[path] = node.output[0]
    return module, save(model, tmp_path / "engine.onnx").path, made


def first_row(path):
    """Weights of the first output of the first layer."""
    weights = {t.name: t for t in onnx.load(path).graph.initializer}
    return onnx.numpy_helper.to_array(weights["first.weight"])[0]


def test_ranges_are_the_largest_magnitudes_that_torch_sees_over_all_inputs(network):
    module, path, made = network
    largest = dict.fromkeys(("first", "act", "second"), 0.0)

    def watch(name):
        def hook(_module, _arguments, output):
            largest[name] = max(largest[name], float(output.abs().max()))

        return hook

    for name in largest:
        module.get_submodule(name).register_forward_hook(watch(name))
    # The one in the middle reaches furthest, so that neither the first nor the last decides.
    inputs = [normal(ROWS, WIDTH, seed=seed) * scale for seed, scale in enumerate((1, 50, 3))]
    inputs[0][3, 5] = -1000
    for x in inputs:
        module(torch.from_numpy(x))
    ranges = scan_ranges(path, [{"x": x} for x in inputs])
    assert ranges["x"] == 1000
    for name, want in largest.items():
        assert ranges[made[name]] == pytest.approx(want, rel=1e-5)  # sums in another order
    floats = onnx.load(path).graph
    assert ranges.keys() == {v.name for v in (*floats.value_info, *floats.input, *floats.output)}


def test_a_scan_sees_one_input_too(network):
    module, path, made = network
    x = normal(ROWS, WIDTH)
    want = float(module.first(torch.from_numpy(x)).abs().max())
    assert scan_ranges(path, [{"x": x}])[made["first"]] == pytest.approx(want, rel=1e-5)


@pytest.mark.parametrize("place", [0, 1])
def test_infinity_once_is_infinity(network, place):
    _, path, made = network
    inputs = [normal(ROWS, WIDTH), normal(ROWS, WIDTH)]
    inputs[place][2] = np.sign(first_row(path)) * np.float32(3e38)
    ranges = scan_ranges(path, [{"x": x} for x in inputs])
    assert ranges[made["first"]] == np.inf


def test_a_scan_without_inputs_is_refused(network):
    with pytest.raises(ValueError, match=r"engine\.onnx: no inputs to scan ranges on"):
        scan_ranges(network[1], [])


def test_a_scan_leaves_nothing_behind(network, tmp_path):
    _, path, _ = network
    before = {file: file.read_bytes() for file in tmp_path.iterdir()}
    assert len(before) == 2
    scan_ranges(path, [{"x": normal(ROWS, WIDTH)}])
    assert {file: file.read_bytes() for file in tmp_path.iterdir()} == before


def test_a_scan_that_fails_leaves_nothing_behind(network, tmp_path):
    _, path, _ = network
    path.with_suffix(".weights").unlink()
    with pytest.raises(Exception, match="weights"):
        scan_ranges(path, [{"x": normal(ROWS, WIDTH)}])
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("largest", "leaves"),
    [
        (0.0, False),
        (65504 / 2, False),
        (np.nextafter(65504 / 2, 1e6), True),
        (65504.0, True),
        (float("inf"), True),
        (float("nan"), True),
    ],
)
def test_a_tensor_must_fit_float16_twice(largest, leaves):
    assert leaves_float16({"t": largest, "small": 1.0}) == ({"t": largest} if leaves else {})


@pytest.fixture(scope="module")
def overflowing(tmp_path_factory):
    """The shipped policy with hidden numbers that leave float16 in one layer; the same function."""

    def enlarge(weights):
        weights["vlm.model.layers.1.mlp.up_proj.weight"] *= OVERFLOW
        weights["vlm.model.layers.1.mlp.down_proj.weight"] /= OVERFLOW

    return copy_checkpoint(tmp_path_factory.mktemp("overflow") / "checkpoint", enlarge)


def test_a_planted_overflow_becomes_a_float32_island(overflowing, tmp_path):
    bundle = build(cut_config(overflowing, tmp_path / "bundle", "orin-fp16-safe"))
    manifest = runtime.load(bundle).bundle.manifest  # ONNX Runtime has float16 on a CPU
    assert not manifest.failed_gates
    islands = manifest.quantization.islands["language"]
    largest = {name: value for name, value in islands.items() if value > 65504}
    made_by = sorted(name.split()[0] for name in largest)
    # up_proj, and its product with the gate; what down_proj makes of that is small again.
    assert made_by == ["Gemm", "Mul"]
    assert manifest.quantization.precisions["language"] == {"float16": 26, "float32": 2}
    assert manifest.action_error < 2e-3


def test_the_same_overflow_in_float16_is_refused(overflowing, tmp_path, monkeypatch):
    monkeypatch.setattr(engines, "leaves_float16", lambda ranges: {})
    with pytest.raises(ExportError, match="gate rounding: engine language: lowering to float16"):
        build(cut_config(overflowing, tmp_path / "bundle", "orin-fp16-safe"))
    assert [path.name for path in tmp_path.iterdir()] == ["bundle-failed.html"]
