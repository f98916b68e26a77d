"""Every rule of the simulated GPU is one that a fault breaks."""

import numpy as np
import pytest

import runtime
from runtime.backends.cuda import Cuda
from runtime.backends.cuda_launch import CudaLauncher
from runtime.backends.tensorrt import TensorRTBackend, TensorRTEngine
from runtime.declarations import Tensor
from runtime.errors import EngineError
from runtime.graph import Graph, Stage
from tests.graphs import leaves, vectors
from tests.runtime.stand_ins.adder import write_adder
from tests.simulation import Violation, install, make_plan

ROW = Tensor(shape=(2, 64))
GRAPH = Graph(
    inputs=vectors("source"),
    tensors={"x": ROW, "y": ROW, "z": ROW},
    stages=(Stage(name="s", function="copy", inputs={"value": "source"}, outputs={"value": "x"}),),
    outputs=leaves("x", "z"),
)
"""The host reads x and z, and nothing of y but what a check asks for."""


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


@pytest.fixture
def started(run):
    """The same, with its scratch memory; `enqueue` it."""
    run()
    return run


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
    wrong = backend.cuda.page_locked(ROW.shape, np.dtype(np.int32))
    backend.cuda.copy_in(memory.address("x"), wrong, memory.stream)
    with pytest.raises(Violation, match="float32 is read where int32 was written"):
        run()


def test_addresses_must_be_aligned(run, memory):
    with pytest.raises(Violation, match="no multiple of 256"):
        run._context.set_tensor_address("x", memory.address("x") + 4)


def test_freed_memory_must_not_be_used(started, memory):
    stream = memory.stream
    memory.close()
    with pytest.raises(Violation, match="was freed"):
        started.enqueue(stream)


def test_a_plan_must_not_be_deserialized_before_its_bundle_is_verified(world, backend, adder):
    world.is_verified = False
    with pytest.raises(Violation, match="before its bundle is verified"):
        backend.engine(adder)


def test_a_context_must_not_run_twice_at_once(started, memory, backend):
    started.enqueue(memory.stream)
    with pytest.raises(Violation, match="one context runs twice at once"):
        started.enqueue(backend.cuda.stream())


def test_intermediate_results_need_memory(run, memory):
    with pytest.raises(Violation, match="too little scratch"):
        run.enqueue(memory.stream)


def copy_pageable(memory):
    array = np.zeros(ROW.shape, np.float32)
    memory._cuda.copy_in(memory.address("x"), array, memory.stream)


@pytest.mark.parametrize(
    ("fault", "rule"),
    [
        (lambda memory, run: memory.scratch(8), "allocation inside a capture"),
        (
            lambda memory, run: memory._cuda.synchronize(memory.stream),
            "synchronization inside a capture",
        ),
        (lambda memory, run: copy_pageable(memory), "pageable memory"),
        (lambda memory, run: run(), "allocation inside a capture"),
    ],
    ids=["allocation", "synchronization", "pageable copy", "first run of a context"],
)
def test_a_capture_must_not_hold(fault, rule, run, memory, backend):
    with pytest.raises(Violation, match=rule), backend.cuda.capture(memory.stream):
        fault(memory, run)


def test_every_stream_of_a_capture_must_be_joined(started, memory, backend):
    other, event = backend.cuda.stream(), backend.cuda.event()
    with (
        pytest.raises(EngineError, match="cudaErrorStreamCaptureUnjoined"),
        backend.cuda.capture(memory.stream),
    ):
        backend.cuda.record(event, memory.stream)
        backend.cuda.wait(other, event)
        started.enqueue(other)


def test_streams_that_share_memory_must_be_ordered(started, memory, backend, adder):
    started.enqueue(memory.stream)
    second = backend.engine(adder).bind({"x": "z", "y": "y"}, {"z": "x"}, memory)
    scratch = memory.scratch(second.scratch_bytes)
    second.give_scratch(int(scratch))
    with pytest.raises(Violation, match="the same memory, and no event orders them"):
        second.enqueue(backend.cuda.stream())


def test_a_policy_whose_streams_do_not_wait_is_caught(world, demo_bundle, monkeypatch):
    monkeypatch.setattr(Cuda, "wait", lambda self, stream, event: None)
    with pytest.raises(Violation, match="no event orders them"):
        runtime.load(demo_bundle, backend=lambda _: TensorRTBackend(make_plan))


def test_a_policy_whose_contexts_go_before_its_graphs_is_caught(world, demo_bundle, monkeypatch):
    policy = runtime.load(demo_bundle, backend=lambda _: TensorRTBackend(make_plan))
    monkeypatch.setattr(CudaLauncher, "close", lambda self: None)
    policy.close()
    assert "a context was destroyed before the graph that refers to it" in world.violations


def test_a_launch_that_does_not_wait_shows_old_numbers(started, memory):
    memory.host("x")[:] = 3
    memory.upload("x")
    memory.copy_in(memory.waiting)
    started.enqueue(memory.stream)
    with pytest.raises(Violation, match="beside work that is not done"):
        memory._cuda.copy_back(memory.host("z"), memory.address("z"))


def test_memory_on_the_gpu_begins_as_zeros(memory):
    """The driver promises nothing of what it hands out."""
    memory.copy_out(["x", "z"])
    memory._cuda.synchronize(memory.stream)
    assert not memory.host("x").any()
    assert not memory.host("z").any()
    assert memory.scratch(8).raw.block.bytes.all()


def test_the_host_must_not_write_into_memory_that_is_being_copied(started, memory):
    memory.host("x")[:] = 3
    memory.copy_in(["x"])
    memory.host("x")[:] = 4
    with pytest.raises(Violation, match="the host wrote into memory that was being copied"):
        memory._cuda.synchronize(memory.stream)


def test_what_is_being_copied_to_the_host_is_no_number_yet(started, memory):
    memory.copy_out(["z"])
    assert np.isnan(memory.host("z")).all()
    memory._cuda.synchronize(memory.stream)
    assert not memory.host("z").any()


def test_page_locked_memory_is_taken_from_what_the_gpu_has_and_given_back(world, backend):
    before = world.free_bytes
    array = backend.cuda.page_locked((1024,), np.dtype(np.float32))
    part = array[512:]
    del array
    assert world.free_bytes == before - 4096
    del part
    assert world.free_bytes == before
    world.free_bytes = 4095
    with pytest.raises(EngineError, match=r"^what the host reads and writes: 0\.0 MB of the GPU"):
        backend.cuda.page_locked((1024,), np.dtype(np.float32))


def test_an_engine_takes_as_much_memory_as_its_weights_while_it_lives(world, backend, adder):
    size, before = adder.stat().st_size, world.free_bytes
    engine = backend.engine(adder)
    assert world.free_bytes == before - size
    engine.close()
    assert world.free_bytes == before
    world.free_bytes = size - 1
    with pytest.raises(EngineError, match=rf"(?s)GPU memory \({size} bytes\) .*too little: reboot"):
        backend.engine(adder)


def test_a_plan_that_was_copied_takes_its_size_twice(world, adder):
    world.free_bytes = 2 * adder.stat().st_size - 1
    TensorRTBackend(make_plan).engine(adder).close()
    copying = TensorRTBackend(lambda path: memoryview(bytes(make_plan(path))))
    with pytest.raises(EngineError, match=r"its memory was too little: reboot"):
        copying.engine(adder)


def test_a_block_must_lie_in_one_piece(world, backend):
    world.largest_block = 1000
    backend.cuda.allocate(1000, "x")
    with pytest.raises(EngineError, match=r"^x: .* are free: they are in pieces; reboot and do"):
        backend.cuda.allocate(1001, "x")


def test_what_is_copied_at_once_must_not_lie_beside_work_that_is_not_done(started, memory):
    memory.host("y")[:] = 1
    memory.copy_in(["x"])
    with pytest.raises(Violation, match="a synchronous copy beside work that is not done"):
        memory.upload("y")
    memory._cuda.synchronize(memory.stream)
    with (
        pytest.raises(Violation, match="a synchronous copy inside a capture"),
        memory._cuda.capture(memory.stream),
    ):
        memory.upload("y")


def test_nothing_must_be_destroyed_twice(backend, memory):
    event, scratch = backend.cuda.event(), memory.scratch(8)
    backend.cuda.destroy_event(event)
    with pytest.raises(Violation, match="destroyed twice"):
        backend.cuda.destroy_event(event)
    memory.release(scratch)
    with pytest.raises(Violation, match="freed twice"):
        memory.release(scratch)
