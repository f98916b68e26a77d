"""Every backend keeps the contract of `runtime.engine`. A new one joins the fixture."""

import time

import numpy as np
import onnx
import pytest
from msgspec.structs import replace
from onnx import helper

from runtime.backends.onnxruntime import OnnxRuntimeBackend
from runtime.backends.parity import engine_errors, relative_error
from runtime.backends.tensorrt import TensorRTBackend
from runtime.declarations import ALIGNMENT, Tensor
from runtime.engine import Backend
from runtime.errors import EngineError
from runtime.graph import Graph, Stage
from tests.graphs import leaves, vectors
from tests.runtime.stand_ins.adder import write_adder
from tests.simulation import install, make_plan
from tests.simulation.generated import write_engine

ROW = Tensor(shape=(2, 4))
GRAPH = Graph(
    inputs=vectors("source"),
    tensors={
        "pair": Tensor(shape=(4, 4)),
        "top": Tensor(shape=(2, 4), part_of=("pair", 0)),
        "bottom": Tensor(shape=(2, 4), part_of=("pair", 8)),
        "other": ROW,
        "sum": ROW,
        "narrow": Tensor(shape=(2, 3)),
        "half": Tensor(shape=(2, 4), dtype="float16"),
    },
    stages=(
        Stage(name="s", function="copy", inputs={"value": "source"}, outputs={"value": "pair"}),
    ),
    outputs=leaves("pair"),
)


@pytest.fixture(params=["onnxruntime", "tensorrt, simulated"])
def backend(request, monkeypatch) -> Backend:
    if request.param == "onnxruntime":
        return OnnxRuntimeBackend()
    world = install(monkeypatch)
    world.is_verified = True
    return TensorRTBackend(make_plan)


@pytest.fixture
def adder(tmp_path):
    """An engine with ports x, y -> z = x + y."""
    return write_adder(tmp_path / "adder.onnx", ROW.shape)


def test_buffers_start_as_zeros_and_never_move(backend):
    memory = backend.memory(GRAPH)
    address = memory.host("sum").ctypes.data
    assert not memory.host("sum").any()
    assert memory.host("sum").ctypes.data == address


def test_every_tensor_that_owns_memory_is_aligned(backend):
    memory = backend.memory(GRAPH)
    address = getattr(memory, "address", lambda name: memory.host(name).ctypes.data)
    assert all(address(name) % ALIGNMENT == 0 for name in GRAPH.roots)


def test_parts_are_places_in_the_larger_tensor(backend):
    memory = backend.memory(GRAPH)
    memory.host("bottom")[:] = 7
    memory.upload("bottom")
    memory.download("pair")
    assert (memory.host("pair")[2:] == 7).all()
    assert not memory.host("pair")[:2].any()


def test_distinct_tensors_share_no_bytes(backend):
    memory = backend.memory(GRAPH)
    roots = [memory.host(name) for name in GRAPH.roots]
    for i, one in enumerate(roots):
        assert not any(np.shares_memory(one, other) for other in roots[i + 1 :])


def test_an_engine_reads_and_writes_the_bound_buffers(backend, adder):
    memory = backend.memory(GRAPH)
    run = backend.engine(adder).bind({"x": "top", "y": "other"}, {"z": "sum"}, memory)
    for value in (1.0, 2.0):
        memory.host("top")[:] = value
        memory.host("other")[:] = 10
        memory.upload("top")
        memory.upload("other")
        run()
        memory.download("sum")
        assert (memory.host("sum") == value + 10).all()


def test_one_engine_can_be_bound_twice(backend, adder):
    memory = backend.memory(GRAPH)
    engine = backend.engine(adder)
    first = engine.bind({"x": "top", "y": "top"}, {"z": "other"}, memory)
    second = engine.bind({"x": "other", "y": "top"}, {"z": "sum"}, memory)
    memory.host("top")[:] = 1
    memory.upload("top")
    first()
    second()
    memory.download("sum")
    assert (memory.host("sum") == 3).all()


CHAIN = Graph(
    inputs=vectors("source"),
    tensors={"x": ROW, "y": ROW, "z": ROW, "result": ROW},
    stages=(
        Stage(name="in", function="copy", inputs={"value": "source"}, outputs={"value": "x"}),
        Stage(name="twice", engine="adder", inputs={"x": "x", "y": "x"}, outputs={"z": "y"}),
        Stage(name="thrice", engine="adder", inputs={"x": "x", "y": "y"}, outputs={"z": "z"}),
        Stage(name="out", function="copy", inputs={"value": "z"}, outputs={"value": "result"}),
    ),
    outputs=leaves("result"),
)


def test_a_launch_runs_stages_in_order_and_shows_what_is_wanted(backend, adder):
    memory, engine = backend.memory(CHAIN), backend.engine(adder)
    engines = [stage for stage in CHAIN.stages if stage.engine]
    runs = {s.name: engine.bind(s.inputs, s.outputs, memory) for s in engines}
    launch = backend.launcher(CHAIN, runs, memory)
    for value in (1, 2, 5, 7):
        memory.host("x")[:] = value
        memory.upload("x")
        start = time.perf_counter()
        seconds = launch(("twice", "thrice"), frozenset(["z"]))
        assert (memory.host("z") == 3 * value).all()
        assert seconds.keys() == runs.keys()
        assert min(seconds.values()) >= 0
        assert sum(seconds.values()) <= time.perf_counter() - start
        if value == 2:
            backend.settle()
    memory.download("y")
    assert (memory.host("y") == 14).all()
    backend.close()


def test_a_copy_has_its_place_between_launches_and_uploads(backend, adder):
    memory, engine = backend.memory(CHAIN), backend.engine(adder)
    engines = [stage for stage in CHAIN.stages if stage.engine]
    runs = {s.name: engine.bind(s.inputs, s.outputs, memory) for s in engines}
    launch = backend.launcher(CHAIN, runs, memory)

    def give(name, value):
        memory.host(name)[:] = value
        memory.upload(name)

    for value in (1, 2, 5, 7):  # launched, captured, replayed
        give("x", value)
        give("y", 100)
        memory.copy("x", "y")
        give("x", 10 * value)
        launch(("thrice",), frozenset(["z"]))
        assert (memory.host("z") == 11 * value).all(), "x is newer than y, and y is no 100"
        memory.copy("z", "y")
        launch(("thrice",), frozenset())
        memory.copy("z", "result")
        launch(("twice", "thrice"), frozenset())
        for name, want in (("result", 21), ("y", 20), ("z", 30)):
            memory.download(name)
            assert (memory.host(name) == want * value).all(), name
    memory.copy("x", "y")  # nobody waits for it
    backend.close()


def test_a_copy_of_a_part_leaves_the_rest(backend):
    memory = backend.memory(GRAPH)
    memory.host("pair")[:] = 3
    memory.host("other")[:] = 8
    memory.upload("pair")
    memory.upload("other")
    memory.copy("other", "bottom")
    memory.download("pair")
    assert (memory.host("pair")[2:] == 8).all() and (memory.host("pair")[:2] == 3).all()
    memory.copy("top", "sum")
    memory.download("sum")
    assert (memory.host("sum") == 3).all()
    backend.close()


def test_the_ports_are_known(backend, adder):
    engine = backend.engine(adder)
    assert set(engine.inputs) == {"x", "y"}
    assert engine.outputs["z"] == ROW


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"x": "top"}, r"ports \['x', 'y'\] expected, got \['x'\]"),
        ({"x": "top", "y": "top", "w": "top"}, "expected, got"),
        ({"x": "narrow", "y": "top"}, r"'x' is float32 \[2, 4\], but tensor 'narrow' .* \[2, 3\]"),
        ({"x": "half", "y": "top"}, "'x' is float32 .* 'half' is float16"),
    ],
)
def test_a_binding_that_does_not_fit_is_refused(backend, adder, inputs, message):
    with pytest.raises(EngineError, match=message):
        backend.engine(adder).bind(inputs, {"z": "sum"}, backend.memory(GRAPH))


def test_tensors_of_bfloat16_are_kept_by_their_bits(backend):
    graph = replace(GRAPH, tensors={"pair": Tensor(shape=(4, 4), dtype="bfloat16")})
    memory = backend.memory(graph)
    memory.host("pair")[:] = 0x3F80
    memory.upload("pair")
    memory.download("pair")
    assert memory.host("pair").dtype == np.uint16
    assert (memory.host("pair") == 0x3F80).all()


@pytest.mark.parametrize("wrong", ["z", "w"])
def test_the_worst_output_of_an_engine_is_its_error(backend, tmp_path, wrong):
    """z = x + y, w = x - y; one of them should be twice as much."""
    path = write_engine(tmp_path, "mix1-1-1-1")
    row = Tensor(shape=(64,))
    stage = Stage(
        name="mixed", engine=path.stem, inputs={"x": "x", "y": "y"}, outputs={"z": "z", "w": "w"}
    )
    given = Stage(
        name="in", function="copy", inputs={"value": "source"}, outputs={"x": "x", "y": "y"}
    )
    graph = Graph(
        inputs=vectors("source"),
        tensors=dict.fromkeys("xyzw", row),
        stages=(given, stage),
        outputs=leaves("z"),
    )
    ones = np.ones(64, np.float32)
    tensors = {"x": 3 * ones, "y": ones, "z": 4 * ones, "w": 2 * ones}
    assert engine_errors(backend, path, graph, tensors) == {"mixed": 0.0}
    tensors[wrong] = 2 * tensors[wrong]
    assert engine_errors(backend, path, graph, tensors) == {"mixed": 0.5}


@pytest.mark.parametrize("scale", [1.0, 1e30, 1e-20])
def test_an_error_is_relative_whatever_the_numbers_size(scale):
    """Squares of float32 end at 3e38 and at 1e-45."""
    want = np.array([3.0, -4.0], np.float32) * np.float32(scale)
    assert relative_error(want, want) == 0.0
    assert relative_error(np.float32(1.5) * want, want) == pytest.approx(0.5, rel=1e-6)
    assert relative_error(np.array([np.nan, 0.0], np.float32), want) == np.inf


def test_a_file_that_is_no_engine_is_refused(backend, tmp_path):
    path = tmp_path / "broken.onnx"
    path.write_bytes(b"not an engine")
    with pytest.raises(EngineError, match="broken.onnx") as told:
        backend.engine(path)
    assert "bfloat16" not in str(told.value)


@pytest.mark.parametrize("dtype", ["float32", "float16", "int32", "int64", "uint8"])
def test_a_port_has_the_type_that_its_file_says(backend, tmp_path, dtype):
    element = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    engine = backend.engine(write_adder(tmp_path / "adder.onnx", ROW.shape, element))
    assert engine.outputs == {"z": Tensor(shape=ROW.shape, dtype=dtype)}


def test_a_side_of_one_is_a_shape_like_any_other(backend, tmp_path):
    row = Tensor(shape=(1, 4))
    assert backend.engine(write_adder(tmp_path / "adder.onnx", row.shape)).outputs == {"z": row}


def test_a_dynamic_shape_is_refused(backend, tmp_path):
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node("Neg", ["x"], ["y"])],
        "dynamic",
        [value("x", onnx.TensorProto.FLOAT, ["n"])],
        [value("y", onnx.TensorProto.FLOAT, ["n"])],
    )
    opset = [helper.make_opsetid("", 18)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=10), tmp_path / "d.onnx")
    with pytest.raises(EngineError, match="not static"):
        backend.engine(tmp_path / "d.onnx")
