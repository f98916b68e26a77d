"""Launcher, schedule and device memory on graphs that nobody drew, against plain numpy.

On the demo's graph a wait that is left out may be harmless; here the simulation's vector clocks see
it. What is copied is counted: no more than what changed and is read.
"""

from collections import Counter

import numpy as np
import pytest

from runtime.backends import device_memory, schedule
from runtime.backends.cuda import Cuda
from runtime.backends.cuda_launch import CudaLauncher
from runtime.backends.device_memory import DeviceMemory
from runtime.backends.tensorrt import BoundContext, TensorRTBackend
from runtime.errors import EngineError
from runtime.functions.calls import FUNCTIONS
from runtime.interpreter import assemble
from tests.simulation import Violation, install, make_plan
from tests.simulation.generated import (
    FUNCTION,
    GENERATED,
    INPUTS,
    UNIT,
    Generator,
    in_order,
    write_engine,
)

SEEDS = range(60)
NUM_TICKS = 9
SETTLED_AT = 6


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("generated")


@pytest.fixture
def world(monkeypatch):
    monkeypatch.setitem(FUNCTIONS, FUNCTION, GENERATED)
    world = install(monkeypatch)
    world.is_verified = True
    return world


class Run:
    """One generated graph on a simulated GPU, beside plain numpy."""

    def __init__(self, seed, folder):
        self.random = np.random.default_rng(seed)
        self.graph = Generator(seed).graph()
        self.backend = TensorRTBackend(make_plan)
        self.memory = self.backend.memory(self.graph)
        engines = {
            stage.engine: self.backend.engine(write_engine(folder, stage.engine))
            for stage in self.graph.stages
            if stage.engine
        }
        self.interpreter = assemble(self.graph, engines, self.memory, None, self.backend.launcher)
        self.values = {}
        for name in INPUTS:
            self.change(name)

    def change(self, name):
        self.values[name] = self.random.integers(0, 97, UNIT).astype(np.float32)
        self.interpreter.set(name, self.values[name])

    def tick(self, number):
        """New values now and then, one leaf, compared in all of its bits."""
        for name, share in zip(INPUTS, (0.3, 0.8), strict=True):
            if self.random.random() < share:
                self.change(name)
        leaf = str(self.random.choice(list(self.graph.outputs)))
        self.bring(leaf)
        want = in_order(self.graph, self.values)[leaf]
        assert np.array_equal(self.memory.host(leaf), want), f"tick {number}, leaf {leaf}"
        return leaf

    def bring(self, leaf):
        self.interpreter.run(leaf)
        self.memory.download(leaf)

    def close(self):
        self.interpreter.close()
        self.backend.close()

    def ticks(self):
        for number in range(NUM_TICKS):
            self.tick(number)
            if number == SETTLED_AT:
                self.backend.settle()


def is_caught(seed, folder):
    try:
        Run(seed, folder).ticks()
    except (Violation, AssertionError, EngineError):
        return True
    return False


@pytest.mark.parametrize("seed", SEEDS)
def test_a_generated_graph_computes_what_plain_numpy_does(world, folder, seed):
    run = Run(seed, folder)
    run.ticks()
    run.close()
    assert not world.violations
    assert not +world.alive


def test_the_graphs_have_what_they_are_for(world, folder):
    """Otherwise the tests above show nothing."""
    found = dict.fromkeys(("overlap", "side stream", "wait", "split", "replayed"), 0)
    for seed in SEEDS[:30]:
        run = Run(seed, folder)
        run.ticks()
        (launcher,) = run.backend._launchers
        extents = [
            run.graph.extent(n)
            for s in run.graph.stages
            for n in s.inputs.values()
            if n in run.graph.tensors
        ]
        found["overlap"] += any(
            r == q and a < c < b < d for r, a, b in extents for q, c, d in extents
        )
        found["side stream"] += len(set(launcher._schedule.stream.values())) > 1
        found["wait"] += any(launcher._schedule.after.values())
        found["split"] += len(set(run.graph.phases)) > 3
        found["replayed"] += bool(launcher.captured)
    assert min(found.values()) >= 10, found


@pytest.mark.parametrize("seed", SEEDS[::6])
def test_a_generated_graph_goes_on_after_any_call_that_fails(world, folder, seed):
    run = Run(seed, folder)
    for number in range(4 * NUM_TICKS):
        world.refuse = len(world.calls) + int(run.random.integers(0, 60))
        for name in INPUTS:
            run.change(name)
        for leaf in run.graph.outputs:
            try:
                run.bring(leaf)
            except EngineError:
                assert not world.now.ops
        world.refuse = None
        run.tick(number)
        if number == 2 * NUM_TICKS:
            run.backend.settle()
    run.close()
    assert not +world.alive


@pytest.mark.parametrize("seed", SEEDS[::3])
def test_what_is_copied_is_what_changed_and_is_read(world, folder, seed):
    """Uncaptured: in, once for each time that a host function wrote it; out, once, if one reads it.

    What a tick leaves waiting is copied by the next launch, though it may be written anew later.
    """
    run = Run(seed, folder)
    run.backend.settle()
    graph, memory = run.graph, run.memory
    stages = {stage.name: stage for stage in graph.stages}
    for number in range(NUM_TICKS):
        world.copies.clear()
        before = memory.waiting
        leaf = run.tick(number)
        hosts = [stages[n] for n in run.interpreter.last_run if stages[n].function]
        written = [name for stage in hosts for name in stage.outputs.values()]
        reads = {n for s in hosts for n in s.inputs.values() if n in graph.tensors} | {leaf}
        copies = {way: [(a, n) for w, a, n in world.copies if w == way] for way in ("in", "out")}
        expected = Counter(place(run, name) for name in (*before, *written))
        expected.subtract(place(run, name) for name in memory.waiting)
        assert not Counter(copies["in"]) - expected, "more than was written"
        missed = expected - Counter(copies["in"])
        assert missed.keys() <= {place(run, name) for name in before}, "written anew in time"
        assert max(Counter(copies["out"]).values(), default=0) <= 1
        assert set(copies["out"]) <= {place(run, name) for name in reads}
        world.copies.clear()
        run.bring(leaf)
        assert not world.copies, "nothing changed"


def place(run, name):
    return run.memory.address(name), run.graph.tensors[name].num_bytes


def test_streams_that_never_wait_are_caught(world, folder, monkeypatch):
    monkeypatch.setattr(Cuda, "wait", lambda self, stream, event: None)
    assert sum(is_caught(seed, folder) for seed in SEEDS[:10]) >= 3


@pytest.mark.parametrize("kind", ["uploads", "stages", "end"])
def test_each_kind_of_wait_is_missed_where_it_is_left_out(world, folder, monkeypatch, kind):
    """A side stream for the uploads; a stage for one of another stream; the end of a batch for the
    last stage of a side stream."""
    wait, start, enqueue = Cuda.wait, CudaLauncher._enqueue, BoundContext.enqueue
    now = {}

    def start_batch(self, stages, *rest, **options):
        now.update(left=len(stages), launcher=self)
        start(self, stages, *rest, **options)

    def enqueue_stage(self, stream):
        now["left"] -= 1
        enqueue(self, stream)

    def forget(self, stream, event):
        is_upload = event is now["launcher"]._ready
        if kind != ("uploads" if is_upload else "stages" if now["left"] else "end"):
            wait(self, stream, event)

    monkeypatch.setattr(CudaLauncher, "_enqueue", start_batch)
    monkeypatch.setattr(BoundContext, "enqueue", enqueue_stage)
    monkeypatch.setattr(Cuda, "wait", forget)
    assert sum(is_caught(seed, folder) for seed in SEEDS[:30]) >= 5


def test_parts_that_overlap_partially_need_an_order(world, folder, monkeypatch):
    """Equal places alone are not enough."""

    def equal_only(graph, some, others):
        places = {graph.extent(name) for name in some.values()}
        return bool(places & {graph.extent(name) for name in others.values()})

    monkeypatch.setattr(schedule, "_overlap", equal_only)
    assert sum(is_caught(seed, folder) for seed in SEEDS[:30]) >= 3


def test_a_memory_that_forgets_overlaps_is_caught(world, folder, monkeypatch):
    """Who reads a larger tensor, or a part, must see what was written under another name."""
    monkeypatch.setattr(device_memory, "_touching", lambda extents, name: frozenset([name]))
    assert sum(is_caught(seed, folder) for seed in SEEDS[:10]) >= 3


def test_a_memory_that_takes_too_much_for_read_is_caught(world, folder, monkeypatch):
    """A part that was copied does not make the whole known."""
    monkeypatch.setattr(device_memory, "_inside", device_memory._touching)
    assert any(is_caught(seed, folder) for seed in SEEDS)


def test_uploads_that_are_lost_are_caught(world, folder, monkeypatch):
    monkeypatch.setattr(DeviceMemory, "copy_in", lambda self, names: None)
    assert all(is_caught(seed, folder) for seed in SEEDS[:5])
