"""Launcher, schedule and memory on the real driver: what the simulation's rules foretell."""

import gc
import sys

import numpy as np
import pytest
import torch

import runtime
from runtime.backends.cuda import Cuda
from runtime.backends.tensorrt import TensorRTBackend
from runtime.bundle import read_golden
from runtime.errors import EngineError
from runtime.functions.calls import FUNCTIONS
from runtime.golden import Golden, vary
from tests.on_gpu.tensorrt_stand_in import Delays, tensorrt, why_no_gpu
from tests.simulation import make_plan
from tests.simulation.generated import FUNCTION, GENERATED
from tests.simulation.test_generated import SEEDS, Run

pytestmark = pytest.mark.gpu

LONGEST = 400_000
"""Cycles, some 0.2 ms: longer than everything else in a generated graph."""


@pytest.fixture
def delays(monkeypatch):
    """The real driver under a stand-in for TensorRT, whose engines dawdle at random."""
    if reason := why_no_gpu():
        pytest.fail(reason)
    delays = Delays()
    monkeypatch.setitem(sys.modules, "tensorrt", tensorrt(delays))
    monkeypatch.setitem(FUNCTIONS, FUNCTION, GENERATED)
    return delays


def dawdle(delays, seed):
    random = np.random.default_rng(seed)
    delays.cycles = (int(n) for n in iter(lambda: random.integers(0, LONGEST), None))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("generated")


@pytest.mark.parametrize("seed", SEEDS)
def test_a_generated_graph_computes_what_plain_numpy_does(delays, folder, seed):
    """Whole numbers, equal to the bit, enqueued and replayed, whichever engine dawdles."""
    dawdle(delays, seed)
    run = Run(seed, folder)
    run.ticks()
    run.backend.close()


def test_streams_that_never_wait_give_other_numbers(delays, folder, monkeypatch):
    """Otherwise the test above shows nothing."""
    monkeypatch.setattr(Cuda, "wait", lambda self, stream, event: None)
    caught = 0
    for seed in SEEDS:
        dawdle(delays, seed)
        run = Run(seed, folder)
        run.backend.settle()  # a capture notices a stream that is not joined; numbers are asked for
        try:
            run.ticks()
        except AssertionError:
            caught += 1
        torch.cuda.synchronize()
        run.backend.close()
    assert caught >= 3


def test_a_capture_that_leaves_a_stream_out_is_refused_by_the_driver(delays, folder, monkeypatch):
    monkeypatch.setattr(Cuda, "wait", lambda self, stream, event: None)
    errors = []
    for seed in SEEDS[:10]:
        run = Run(seed, folder)
        try:
            run.ticks()
        except (EngineError, AssertionError) as error:
            errors.append(str(error))
        run.backend.close()
    assert any("Capture" in text for text in errors), errors


@pytest.fixture
def policies(delays, demo_bundle):
    """The demo on the GPU and on ONNX Runtime."""
    on_gpu = runtime.load(demo_bundle, backend=lambda _: TensorRTBackend(make_plan))
    yield on_gpu, runtime.load(demo_bundle)
    on_gpu.close()


def test_the_demo_passes_the_check_of_its_bundle(policies):
    parities = policies[0].check()
    assert parities
    assert all(parity.passed for parity in parities), parities


def test_its_batches_are_captured_and_replayed(policies):
    (launcher,) = policies[0].backend._launchers
    assert launcher.captured


def test_a_warm_tick_equals_a_cold_one_to_the_bit(policies):
    """Everything kept, or everything anew: the same kernels on the same numbers."""
    policy = policies[0]
    golden = Golden.of(policy.bundle)
    episode = policy.start(**golden.given)
    for number in range(20):
        observed = vary(policy.inputs, golden.observed, number)
        warm = episode.act(observed).actions.copy()
        policy.forget()
        assert np.array_equal(warm, episode.act(observed).actions), number


def test_every_kind_of_tick_is_near_onnx_runtime(policies, image):
    """float32 on both: 1e-4, as `quant.recipes.float32` derives it, of a chunk's norm."""
    episodes = [p.start(anchor=image(0), instruction="open the drawer") for p in policies]
    state = np.zeros(4, np.float32)

    def act(frame):
        observed = {"frame": image(frame), "state": state}
        got, want = (episode.act(observed).actions for episode in episodes)
        assert np.linalg.norm(got - want) <= 1e-4 * np.linalg.norm(want)

    for frame in (1, 2, 2):
        act(frame)
    for episode in episodes:
        episode.say("close the drawer")
    act(3)
    for episode in episodes:
        episode.give(anchor=image(3))
    act(4)


def test_everything_is_given_back(delays, demo_bundle):
    """Loading ten times takes no more of the GPU than loading once, but for torch's own pools."""

    def load_and_close():
        runtime.load(demo_bundle, backend=lambda _: TensorRTBackend(make_plan)).close()
        gc.collect()
        torch.cuda.empty_cache()
        cuda = Cuda()
        with cuda.context:
            return cuda.driver.mem_get_info()[0]

    first, *_, last = [load_and_close() for _ in range(10)]
    assert first - last <= 4 << 20


def test_memory_that_is_not_there_is_a_clear_error(delays):
    with pytest.raises(
        EngineError, match="too much: .* MB of the GPU's memory are needed, .* free"
    ):
        Cuda().allocate(1 << 40, "too much")


def test_what_a_capture_does_not_allow_is_an_error_and_the_stream_lives_on(delays):
    cuda = Cuda()
    stream = cuda.stream()
    with pytest.raises(EngineError, match="capturing"), cuda.capture(stream):
        cuda.synchronize(stream)
    cuda.synchronize(stream)


def test_times_are_read_inside_a_replayed_graph(delays):
    """A sleep of twice the cycles takes twice as long by the events around it."""
    cuda = Cuda()
    stream = cuda.stream()

    def seconds(cycles):
        start, stop = cuda.event(), cuda.event()
        with cuda.capture(stream) as graph:
            cuda.record_time(start, stream, captured=True)
            with torch.cuda.stream(torch.cuda.ExternalStream(stream.handle)):
                torch.cuda._sleep(cycles)
            cuda.record_time(stop, stream, captured=True)
        for _ in range(3):
            graph.launch(stream)
            cuda.synchronize(stream)
        found = cuda.seconds(start, stop)
        graph.close()
        return found

    torch.cuda._sleep(1)
    assert seconds(20_000_000) / seconds(10_000_000) == pytest.approx(2, rel=0.2)


def test_what_the_host_wrote_reaches_the_gpu_and_comes_back(policies):
    memory, golden = policies[0].memory, read_golden(policies[0].bundle)
    name = next(n for n in policies[0].graph.roots if f"stage/{n}" in golden)
    memory.host(name)[...] = golden[f"stage/{name}"]
    memory.upload(name)
    memory.flush()
    memory.written([name])
    memory.host(name)[...] = 0
    memory.download(name)
    assert np.array_equal(memory.host(name), golden[f"stage/{name}"])
