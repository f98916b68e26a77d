"""Every rule of the simulated GPU is one that a fault breaks."""

import numpy as np
import pytest

import runtime
from runtime.cuda import Cuda
from runtime.cuda_launch import CudaLauncher
from runtime.graph import Graph, Stage, Tensor
from runtime.tensorrt_engine import TensorRTBackend, TensorRTEngine
from tests.runtime.stand_ins.adder import write_adder
from tests.simulation import Violation, install, make_plan

ROW = Tensor(shape=(2, 64))
GRAPH = Graph(
    inputs=("source",),
    tensors={"x": ROW, "y": ROW, "z": ROW},
    stages=(Stage(name="s", function="copy", inputs={"value": "source"}, outputs={"value": "x"}),),
    outputs=("x",),
)


@pytest.fixture
def world(monkeypatch):
    world = install(monkeypatch)
    world.is_verified = True
    return world


@pytest.fixture
def adder(tmp_path):
    """An engine with ports x, y -> z = x + y."""
    return write_adder(tmp_path / "adder.onnx", ROW.shape)


@pytest.fixture
def backend(world):
    return TensorRTBackend(make_plan)


@pytest.fixture
def memory(backend):
    return backend.memory(GRAPH)


@pytest.fixture
def run(backend, memory, adder):
    """An engine that adds x and y into z."""
    return backend.engine(adder).bind({"x": "x", "y": "y"}, {"z": "z"}, memory)


def test_without_a_fault_nothing_is_broken(run, memory, world):
    memory.host("x")[:] = 3
    memory.upload("x")
    run()
    memory.download("z")
    assert (memory.host("z") == 3).all()
    assert not world.violations


def test_a_tensor_name_must_exist(run, memory):
    with pytest.raises(Violation, match="no tensor 'w'"):
        run._context.set_tensor_address("w", memory.address("x"))


def test_every_tensor_must_be_bound(backend, memory, adder, monkeypatch):
    real = TensorRTEngine._bind_port
    monkeypatch.setattr(
        TensorRTEngine,
        "_bind_port",
        lambda self, context, port, *rest: port == "y" or real(self, context, port, *rest),
    )
    forgetful = backend.engine(adder).bind({"x": "x", "y": "y"}, {"z": "z"}, memory)
    with pytest.raises(Violation, match=r"unbound: \['y'\]"):
        forgetful()


def test_a_buffer_must_be_as_large_as_the_tensor(run, memory):
    run._context.set_tensor_address("x", memory.address("z") + 256)
    with pytest.raises(Violation, match="lie in no block"):
        run()


def test_a_buffer_must_hold_numbers_of_the_type_that_is_read(run, memory, backend):
    wrong = backend.cuda.driver.pagelocked_zeros(ROW.shape, np.int32)
    backend.cuda.driver.memcpy_htod_async(memory.address("x"), wrong, memory.stream)
    with pytest.raises(Violation, match="float32 is read where int32 was written"):
        run()


def test_addresses_must_be_aligned(run, memory):
    with pytest.raises(Violation, match="no multiple of 256"):
        run._context.set_tensor_address("x", memory.address("x") + 4)


def test_freed_memory_must_not_be_used(run, memory):
    memory.close()
    with pytest.raises(Violation, match="was freed"):
        run()


def test_a_plan_must_not_be_deserialized_before_its_bundle_is_verified(world, backend, adder):
    world.is_verified = False
    with pytest.raises(Violation, match="before its bundle is verified"):
        backend.engine(adder)


def test_a_context_must_not_run_twice_at_once(run, memory, backend):
    run()
    with pytest.raises(Violation, match="one context runs twice at once"):
        run.enqueue(backend.cuda.driver.Stream())


def test_intermediate_results_need_memory(run, memory):
    with pytest.raises(Violation, match="too little scratch"):
        run.enqueue(memory.stream)


def copy_pageable(memory):
    array = np.zeros(ROW.shape, np.float32)
    memory._cuda.driver.memcpy_htod_async(memory.address("x"), array, memory.stream)


@pytest.mark.parametrize(
    ("fault", "rule"),
    [
        (lambda memory, run: memory.scratch(8), "allocation inside a capture"),
        (lambda memory, run: memory.stream.synchronize(), "synchronization inside a capture"),
        (lambda memory, run: copy_pageable(memory), "pageable memory"),
        (lambda memory, run: run(), "allocation inside a capture"),
    ],
    ids=["allocation", "synchronization", "pageable copy", "first run of a context"],
)
def test_a_capture_must_not_hold(fault, rule, run, memory, backend):
    with pytest.raises(Violation, match=rule), backend.cuda.capture(memory.stream):
        fault(memory, run)


def test_every_stream_of_a_capture_must_be_joined(run, memory, backend):
    run()
    memory.stream.synchronize()
    other, event = backend.cuda.driver.Stream(), backend.cuda.event()
    with (
        pytest.raises(Violation, match="was not joined"),
        backend.cuda.capture(memory.stream),
    ):
        backend.cuda.record(event, memory.stream)
        backend.cuda.wait(other, event)
        run.enqueue(other)


def test_streams_that_share_memory_must_be_ordered(run, memory, backend, adder):
    run()
    second = backend.engine(adder).bind({"x": "z", "y": "y"}, {"z": "x"}, memory)
    second.give_scratch(int(memory.scratch(second.scratch_bytes)))
    with pytest.raises(Violation, match="the same memory, and no event orders them"):
        second.enqueue(backend.cuda.driver.Stream())


def test_a_policy_whose_streams_do_not_wait_is_caught(world, demo_bundle, monkeypatch):
    monkeypatch.setattr(Cuda, "wait", lambda self, stream, event: None)
    with pytest.raises(Violation, match="no event orders them"):
        runtime.load(demo_bundle, make_backend=lambda _: TensorRTBackend(make_plan))


def test_a_policy_whose_contexts_go_before_its_graphs_is_caught(world, demo_bundle, monkeypatch):
    policy = runtime.load(demo_bundle, make_backend=lambda _: TensorRTBackend(make_plan))
    monkeypatch.setattr(CudaLauncher, "close", lambda self: None)
    policy.close()
    assert "a context was destroyed before the graph that refers to it" in world.violations


def test_a_launch_that_does_not_wait_shows_old_numbers(run, memory):
    memory.host("x")[:] = 3
    memory.upload("x")
    memory.copy_in(memory.take_uploads())
    run.give_scratch(int(memory.scratch(run.scratch_bytes)))
    run.enqueue(memory.stream)
    with pytest.raises(Violation, match="beside work that is not done"):
        memory._cuda.driver.memcpy_dtoh(memory.host("z"), memory.address("z"))
