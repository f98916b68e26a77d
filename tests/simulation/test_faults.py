"""A launch that fails can be made again, and whatever fails, close gives everything back."""

import itertools

import numpy as np
import pytest
from msgspec.structs import replace

import runtime
from runtime.backends.cuda_launch import CudaLauncher
from runtime.backends.onnxruntime import OnnxRuntimeBackend
from runtime.backends.tensorrt import TensorRTBackend
from runtime.declarations import Tensor
from runtime.engine import Backend
from runtime.errors import EngineError
from runtime.graph import Graph, Stage
from tests.graphs import leaves, vectors
from tests.runtime.stand_ins.adder import write_adder
from tests.simulation import install, make_plan
from tests.simulation.faults import KINDS, Faults, FaultyBackend, InjectedFault

ROW = Tensor(shape=(64,))
GRAPH = Graph(
    inputs=vectors("source"),
    tensors={name: ROW for name in ("x", "y", "left", "right", "sum", "result")},
    stages=(
        Stage(name="in", function="copy", inputs={"value": "source"}, outputs={"value": "x"}),
        Stage(name="in_too", function="copy", inputs={"value": "source"}, outputs={"value": "y"}),
        Stage(name="left", engine="adder", inputs={"x": "x", "y": "y"}, outputs={"z": "left"}),
        Stage(name="right", engine="adder", inputs={"x": "x", "y": "x"}, outputs={"z": "right"}),
        Stage(name="sum", engine="adder", inputs={"x": "left", "y": "right"}, outputs={"z": "sum"}),
        Stage(name="out", function="copy", inputs={"value": "sum"}, outputs={"value": "result"}),
    ),
    outputs=leaves("result"),
)
"""left = x + y and right = x + x beside each other, sum = 3 x + y after both."""
ENGINES = ("left", "right", "sum")
WANTED = frozenset(["sum"])


@pytest.fixture
def world(monkeypatch):
    world = install(monkeypatch)
    world.is_verified = True
    yield world
    assert not world.violations


@pytest.fixture
def adder(tmp_path):
    return write_adder(tmp_path / "adder.onnx", ROW.shape)


def start(backend: Backend, adder):
    memory, engine = backend.memory(GRAPH), backend.engine(adder)
    runs = {
        s.name: engine.bind(s.inputs, s.outputs, memory) for s in GRAPH.stages if s.name in ENGINES
    }
    return memory, backend.launcher(GRAPH, runs, memory)


def give(memory, x, y):
    for name, value in (("x", x), ("y", y)):
        memory.host(name)[:] = value
        memory.upload(name)


def ways_to_fail(world, backend, adder):
    """Every call of a launch by its number: uncaptured, captured for the first time, replayed."""
    memory, launch = start(backend, adder)
    for way in ("enqueued", "captured", "replayed"):
        give(memory, 1, 2)
        before = len(world.calls)
        launch(ENGINES, WANTED)
        yield from ((way, number) for number in range(len(world.calls) - before))


@pytest.fixture
def ways(world, adder):
    backend = TensorRTBackend(make_plan)
    found = list(ways_to_fail(world, backend, adder))
    backend.close()
    assert len({way for way, _ in found}) == 3
    return found


def test_after_any_call_that_fails_the_same_launch_works(world, adder, ways):
    """Uploads that were taken wait again, no stream keeps work, and no number is an old one."""
    for way, number in ways:
        backend = TensorRTBackend(make_plan)
        memory, launch = start(backend, adder)
        for value in range(("enqueued", "captured", "replayed").index(way)):
            give(memory, value, 100)
            launch(ENGINES, WANTED)
        give(memory, 5, 7)
        before = len(world.calls)
        world.refuse = before + number
        try:
            launch(ENGINES, WANTED)
        except EngineError as error:
            assert "CUDA: " in str(error) or "did not enqueue" in str(error)
        else:
            raise AssertionError(f"{way}: {world.calls[before + number]} failed unnoticed")
        assert not world.now.ops, "something is still under way"
        give(memory, 5, 11)  # the host may write at once
        assert launch(ENGINES, WANTED).keys() == set(ENGINES)
        assert (memory.host("sum") == 26).all(), (way, world.calls[before + number])
        memory.download("left")
        assert (memory.host("left") == 16).all()
        launch(ENGINES, WANTED)
        backend.settle()
        backend.close()
        assert not +world.alive, (way, number, world.alive)


def test_what_was_uploaded_before_a_failure_is_copied_again(world, adder):
    backend = TensorRTBackend(make_plan)
    memory, launch = start(backend, adder)
    give(memory, 1, 2)
    world.refuse = "execute_async_v3"
    with pytest.raises(EngineError, match=r"adder\.onnx: TensorRT did not enqueue the engine"):
        launch(ENGINES, WANTED)
    assert memory.waiting == ("x", "y")
    launch(ENGINES, WANTED)
    assert memory.waiting == ()
    assert (memory.host("sum") == 5).all()
    backend.close()


def test_what_a_failed_launch_may_have_written_is_read_from_the_gpu(world, adder):
    """Not from the copy that the host has of an earlier launch."""
    backend = TensorRTBackend(make_plan)
    memory, launch = start(backend, adder)
    for x in (1, 2, 10):
        give(memory, x, 2 * x)
        world.refuse = "synchronize" if x == 10 else None
        if x < 10:
            launch(ENGINES, WANTED)
    with pytest.raises(EngineError, match="waiting for the GPU failed: synchronize was refused"):
        launch(ENGINES, frozenset())
    memory.download("sum")
    assert (memory.host("sum") == 50).all()
    backend.close()


@pytest.mark.parametrize("call", ["mem_alloc", "memcpy_htod_async", "synchronize"])
def test_an_engine_that_runs_alone_can_run_again_after_a_failure(world, adder, call):
    backend = TensorRTBackend(make_plan)
    memory = backend.memory(GRAPH)
    alone = backend.engine(adder).bind({"x": "x", "y": "y"}, {"z": "left"}, memory)
    give(memory, 1, 2)
    world.refuse = call
    with pytest.raises(EngineError, match=call if call != "mem_alloc" else "memory for the eng"):
        alone()
    give(memory, 3, 4)
    alone()
    memory.download("left")
    assert (memory.host("left") == 7).all()
    backend.close()
    assert not +world.alive


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("stage", ENGINES)
@pytest.mark.parametrize("is_simulated", [False, True], ids=["onnxruntime", "simulated"])
def test_a_fault_is_injected_once_and_where_it_was_asked_for(
    monkeypatch, world, adder, stage, kind, is_simulated
):
    faults = Faults(monkeypatch)
    inner = TensorRTBackend(make_plan) if is_simulated else OnnxRuntimeBackend()
    backend = FaultyBackend(inner, faults, world if is_simulated else None)
    memory, launch = start(backend, adder)
    for repeat in range(3):  # enqueued, captured, replayed
        give(memory, repeat, 2)
        launch(ENGINES, WANTED)
        faults.arm(stage, kind)
        give(memory, repeat + 1, 3)
        if kind in ("before", "after", "half"):
            with pytest.raises(InjectedFault, match=f"stage '{stage}'"):
                launch(ENGINES, WANTED)
        else:
            launch(ENGINES, WANTED)
            memory.download(stage)
            wrong = np.isnan(memory.host(stage)).sum()
            assert wrong == (ROW.size if kind == "nan" else 1)
        assert not faults.is_armed
        launch(ENGINES, WANTED)
        assert (memory.host("sum") == 3 * (repeat + 1) + 3).all()
    assert faults.fired == [(stage, kind)] * 3
    backend.close()
    assert not +world.alive


def test_after_any_call_that_fails_while_loading_nothing_is_left(world, adder):
    backend = TensorRTBackend(make_plan)
    start(backend, adder)
    num_calls = len(world.calls)
    backend.close()
    assert {"mem_alloc", "cudaEventCreate", "create_execution_context"} <= set(world.calls)
    for number in range(num_calls):
        backend = TensorRTBackend(make_plan)
        world.refuse = len(world.calls) + number
        with pytest.raises(EngineError):
            start(backend, adder)
        backend.close()
        assert not +world.alive, world.calls[-1]


def test_close_gives_everything_back_and_may_be_called_twice(world, adder):
    backend = TensorRTBackend(make_plan)
    memory, launch = start(backend, adder)
    give(memory, 1, 2)
    launch(ENGINES, WANTED)
    launch(ENGINES, WANTED)
    assert isinstance(launch, CudaLauncher)
    assert launch.captured == [ENGINES]
    alone = backend.engine(adder).bind({"x": "x", "y": "y"}, {"z": "left"}, memory)
    alone()
    alone()
    assert world.alive["event"] == 1 + 3 + 4 + 4
    assert world.alive["allocation"] == 1 + 2 + 1
    assert world.alive["stream"] == 2
    backend.close()
    backend.close()
    assert launch.captured == []
    assert not world.num_dropped
    assert not +world.alive


def test_what_an_engine_writes_is_copied_back_and_its_neighbours_are_not(world):
    half = {"left": ("pair", 0), "right": ("pair", 64)}
    parts = {name: Tensor(shape=(64,), part_of=place) for name, place in half.items()}
    whole = Stage(name="in", function="copy", inputs={"value": "source"}, outputs={"value": "pair"})
    graph = Graph(
        inputs=vectors("source"),
        tensors={"pair": Tensor(shape=(128,)), **parts},
        stages=(whole,),
        outputs=leaves("pair"),
    )
    backend = TensorRTBackend(make_plan)
    memory = backend.memory(graph)
    for written, beside in (("left", "right"), ("right", "left")):
        memory.written([written])
        before = len(world.copies)
        memory.download(beside)
        assert len(world.copies) == before
        memory.download("pair")
        assert world.copies[before:] == [("out", memory.address("pair"), 512)]
        memory.download(written)
        assert len(world.copies) == before + 1
    backend.close()


def test_a_launch_shows_what_no_tick_would_ask_for_too(world, adder):
    """`left` has no page-locked twin, so no batch can copy it."""
    backend = TensorRTBackend(make_plan)
    memory, launch = start(backend, adder)
    assert not memory.is_page_locked("left") and memory.is_page_locked("sum")
    for x in (1, 2, 3):  # enqueued, captured, replayed
        give(memory, x, 10)
        launch(ENGINES, frozenset(["left", "sum"]))
        assert (memory.host("left") == x + 10).all()
        assert (memory.host("sum") == 3 * x + 10).all()
    backend.close()


def test_times_between_events_are_seconds(world):
    backend = TensorRTBackend(make_plan)
    start, stop = backend.cuda.event(), backend.cuda.event()
    start.time_s, stop.time_s = 1.0, 1.25
    assert backend.cuda.seconds(start, stop) == pytest.approx(0.25)
    for event in (start, stop):
        backend.cuda.destroy_event(event)


def test_a_stages_seconds_begin_where_it_had_nothing_more_to_wait_for(world, adder, monkeypatch):
    """A second between any two times: start, sum, left, right and more (beside it), total."""
    feeds = {
        "sum": ("x", "y"),
        "left": ("sum", "x"),
        "right": ("sum", "y"),
        "more": ("right", "y"),
        "total": ("left", "more"),
    }
    engines = tuple(
        Stage(name=n, engine="adder", inputs=dict(zip("xy", ports, strict=True)), outputs={"z": n})
        for n, ports in feeds.items()
    )
    graph = replace(
        GRAPH,
        tensors={name: ROW for name in ("x", "y", *feeds, "result")},
        stages=(*GRAPH.stages[:2], *engines, GRAPH.stages[-1]),
    )
    clock = itertools.count()
    monkeypatch.setattr("tests.simulation.world.time.perf_counter", lambda: float(next(clock)))
    backend = TensorRTBackend(make_plan)
    memory, engine = backend.memory(graph), backend.engine(adder)
    runs = {stage.name: engine.bind(stage.inputs, stage.outputs, memory) for stage in engines}
    launch = backend.launcher(graph, runs, memory)
    for value in range(3):  # enqueued, captured, replayed
        give(memory, value, 2)
        before = len(world.calls)
        seconds = launch(tuple(feeds), frozenset(["total"]))
        assert seconds == {"sum": 1.0, "left": 1.0, "right": 2.0, "more": 1.0, "total": 1.0}
        # right: for the uploads, and for sum; total: for more; and the end: for more
        waits = world.calls[before:].count("cudaStreamWaitEvent")
        assert waits == (4 if value < 2 else 0)
    backend.close()


def test_close_works_where_the_gpu_answers_nothing_any_more(world, adder, monkeypatch):
    backend = TensorRTBackend(make_plan)
    memory, launch = start(backend, adder)
    give(memory, 1, 2)
    launch(ENGINES, WANTED)
    world.is_dead = True
    with pytest.raises(EngineError, match="start the process again"):
        launch(ENGINES, WANTED)
    backend.close()
    assert not +world.alive


@pytest.mark.parametrize("is_simulated", [False, True], ids=["onnxruntime", "simulated"])
def test_a_fault_reaches_every_stage_of_a_policy(monkeypatch, world, demo_bundle, is_simulated):
    faults = Faults(monkeypatch)
    inner = TensorRTBackend(make_plan) if is_simulated else OnnxRuntimeBackend()
    backend = FaultyBackend(inner, faults, world if is_simulated else None)
    policy = runtime.load(demo_bundle, backend=lambda _: backend)
    stages = [stage for stage, needs in policy.graph.stage_dependencies.items() if needs]
    for stage in stages:
        faults.arm(stage, "before")
        policy.forget()
        with pytest.raises(InjectedFault, match=f"stage '{stage}'"):
            for leaf in policy.graph.outputs:
                policy.interpreter.run(leaf)
    assert [stage for stage, _ in faults.fired] == stages
    policy.close()
    assert not +world.alive


def test_a_policy_that_does_not_load_leaves_nothing_on_the_gpu(world, demo_bundle):
    policy = runtime.load(demo_bundle, backend=lambda _: TensorRTBackend(make_plan))
    num_calls = len(world.calls)
    policy.close()
    for number in np.linspace(0, num_calls - 1, 25).astype(int):
        world.refuse = len(world.calls) + int(number)
        with pytest.raises(EngineError):
            runtime.load(demo_bundle, backend=lambda _: TensorRTBackend(make_plan))
        assert not +world.alive, world.calls[-1]
