"""The TensorRT engine on a simulated GPU: the same actions, one launch and one wait per tick."""

import gc
import json
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

import runtime
from runtime import policy as policy_module
from runtime.backends import tensorrt as tensorrt_engine
from runtime.backends.tensorrt import TensorRTBackend
from runtime.bundle import read_golden
from runtime.errors import BundleError, EngineError
from runtime.pages.show import describe
from tests.simulation import install, make_plan
from tests.simulation.world import PINNED


@pytest.fixture
def world(monkeypatch):
    """A simulated GPU that knows when a bundle was verified."""
    world = install(monkeypatch)
    read = policy_module.read_bundle

    def verify(path, **options):
        bundle = read(path, **options)
        world.is_verified = True
        return bundle

    monkeypatch.setattr(policy_module, "read_bundle", verify)
    yield world
    assert not world.violations


@pytest.fixture
def pair(world, demo_bundle):
    """The same bundle on both engines."""
    simulated = runtime.load(demo_bundle, backend=lambda _: TensorRTBackend(make_plan))
    yield simulated, runtime.load(demo_bundle)
    simulated.close()


@pytest.mark.parametrize("kind", ["tensorrt", "tensorrt_rtx"])
def test_it_is_called_by_the_compiler_that_computes(world, monkeypatch, kind):
    real = tensorrt_engine.load_tensorrt
    monkeypatch.setattr(tensorrt_engine, "load_tensorrt", lambda asked: real("tensorrt"))
    backend = TensorRTBackend(make_plan, name=kind)
    assert backend.name == kind
    backend.close()


def test_every_kind_of_tick_equals_onnx_runtime_bit_for_bit(pair, image):
    """Both compute with the same kernels here, so any difference is a fault of the buffers."""
    episodes = [p.start(anchor=image(0), instruction="open the drawer") for p in pair]
    state = np.zeros(4, np.float32)

    def act(frame):
        chunks = [
            episode.act({"frame": image(frame), "state": state}).actions for episode in episodes
        ]
        assert np.array_equal(*chunks)

    act(1)  # cold: the anchor and the instruction are new
    act(2)
    act(2)  # a repeated frame
    for episode in episodes:
        episode.say("close the drawer")
    act(3)
    for episode in episodes:
        episode.give(anchor=image(3))
    act(4)
    for policy in pair:
        policy.forget()
    act(5)
    similarity = [episode.ask("anchor_similarity") for episode in episodes]
    assert similarity[0] == similarity[1]
    act(6)
    ran = [episode.stats.num_runs for episode in episodes]
    assert ran[0] == ran[1], "both keep the same"


def test_the_golden_data_are_met(pair):
    assert all(verdict.passed for verdict in pair[0].check())


def test_a_warm_tick_and_a_re_anchor_are_one_launch_and_one_wait(pair, world, image):
    episode = pair[0].start(anchor=image(0), instruction="open the drawer")
    state = np.zeros(4, np.float32)
    for number, prepare in enumerate(
        (lambda: None, lambda: None, lambda: episode.give(anchor=image(9)), lambda: None)
    ):
        prepare()
        before = world.num_launches, world.num_synchronizations
        episode.act({"frame": image(number + 1), "state": state})
        assert (world.num_launches, world.num_synchronizations) == (before[0] + 1, before[1] + 1)


def test_nothing_is_captured_once_the_policy_is_warm(pair, world, image):
    episode = pair[0].start(anchor=image(0), instruction="open the drawer")
    graphs = len(world.graphs)
    frame, state = image(1), np.zeros(4, np.float32)
    for _ in range(3):
        episode.act(
            {"frame": frame, "state": state}
        )  # a repeated frame: denoising only, which is rare
    assert len(world.graphs) == graphs
    assert 1 <= graphs <= 3


def test_a_warm_tick_allocates_nothing_on_the_gpu(pair, world, image):
    episode = pair[0].start(anchor=image(0), instruction="open the drawer")
    episode.act({"frame": image(1), "state": np.zeros(4, np.float32)})
    blocks = len(world.blocks)
    for number in range(3):
        episode.act({"frame": image(number), "state": np.zeros(4, np.float32)})
    assert len(world.blocks) == blocks


def test_garbage_in_all_scratch_memory_changes_no_bit(pair, world, image):
    """Versions say what is still valid, so nothing that is kept may live in scratch memory."""
    scratch = [block for launcher in pair[0].backend._launchers for block in launcher.scratch]
    assert scratch
    random = np.random.default_rng(0)
    episodes = [p.start(anchor=image(0), instruction="open the drawer") for p in pair]
    for number in range(3):
        chunks = [
            episode.act({"frame": image(number), "state": np.zeros(4, np.float32)}).actions
            for episode in episodes
        ]
        assert np.array_equal(*chunks)
        for block in scratch:
            view = block.raw.block.bytes
            view[:] = random.integers(0, 256, len(view), np.uint8)


def test_spatial_runs_beside_language(pair):
    stream = pair[0].backend._launchers[0]._schedule.stream
    assert stream["suffix"] != stream["spatial"]
    assert stream["frame_vision"] == stream["condition"] == stream["denoise_9"] == 0


def test_seconds_are_measured_for_every_stage_of_a_replayed_graph(pair, image):
    episode = pair[0].start(anchor=image(0), instruction="open the drawer")
    for number in range(2):
        episode.act({"frame": image(number), "state": np.zeros(4, np.float32)})
    seconds = episode.stats.last_s
    assert {"frame_vision", "suffix", "denoise_9"} <= seconds.keys()
    assert all(value >= 0 for value in seconds.values())
    assert seconds["suffix"] > 0


def damage(path):
    data = bytearray(path.read_bytes())
    data[1000] ^= 1
    path.write_bytes(data)


@pytest.fixture
def copied(demo_bundle, tmp_path):
    return Path(shutil.copytree(demo_bundle, tmp_path / "bundle"))


@pytest.mark.parametrize("name", ["embedding.bin", "tokenizer.json", "golden.npz"])
def test_a_damaged_bundle_never_reaches_tensorrt(world, copied, name):
    damage(copied / name)
    with pytest.raises(BundleError, match=f"{name}: SHA-256 differs"):
        runtime.load(copied, backend=lambda _: TensorRTBackend(make_plan))
    assert world.num_deserialized == 0


def test_onnx_files_are_read_by_who_opens_them_and_by_nobody_else(world, demo_bundle, copied):
    """Here the plans lie elsewhere: what TensorRT runs is not in the damaged bundle."""
    plans = lambda path: make_plan(demo_bundle / "engines" / path.name)  # noqa: E731
    damage(copied / "engines" / "vision.weights")
    with runtime.load(copied, backend=lambda _: TensorRTBackend(plans)) as policy:
        files = policy.bundle.manifest.files
        engines = {name for name in files if name.startswith("engines/")}
        assert policy.bundle.verified.keys() == files.keys() - engines
        rest = sum(entry.bytes for name, entry in files.items() if name not in engines)
        plan_bytes = sum(plans(Path(name)).nbytes for name in engines if name.endswith(".onnx"))
        assert policy.bytes_read == rest + plan_bytes
        with pytest.raises(BundleError, match=r"vision\.weights: SHA-256 differs"):
            policy.bundle.engine("vision")
    with pytest.raises(BundleError, match=r"vision\.weights: SHA-256 differs"):
        runtime.load(copied)


def test_an_engine_file_that_is_missing_or_short_is_refused_on_tensorrt_too(world, copied):
    weights = copied / "engines" / "vision.weights"
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(BundleError, match=r"vision\.weights: \d+ bytes, the manifest says"):
        runtime.load(copied, backend=lambda _: TensorRTBackend(make_plan))
    assert world.num_deserialized == 0


def test_plans_are_released_once_they_are_read(world, demo_bundle):
    given = []

    def read_plan(path):
        given.append(make_plan(path))
        return given[-1]

    with runtime.load(demo_bundle, backend=lambda _: TensorRTBackend(read_plan)):
        assert len(given) == 6
        for plan in given:
            with pytest.raises(ValueError, match="released"):
                plan[0]


def roots_of_copies(world, memory):
    """Tensors that own the memory which was copied, by their addresses."""
    graph = memory.graph
    places = {memory.address(name): graph.extent(name)[0] for name in graph.tensors}
    return {places[address] for _, address, _ in world.copies}


def test_what_ticks_copy_is_page_locked_and_nothing_else(world, demo_bundle, image):
    policy = runtime.load(demo_bundle, backend=lambda _: TensorRTBackend(make_plan))
    episode = policy.start(anchor=image(0), instruction="open the drawer")
    episode.act({"frame": image(1), "state": np.zeros(4, np.float32)})
    episode.ask("anchor_similarity")
    graph, memory = policy.graph, policy.memory
    copied = roots_of_copies(world, memory)
    locked = sum(len(block.bytes) for block in world.blocks if block.kind == PINNED)
    assert locked == sum(graph.tensors[name].num_bytes for name in copied)
    assert memory.page_locked_bytes == locked < memory.num_bytes
    assert "prefix_kv" not in copied, "what is kept of the anchor stays where it is"
    assert f"page-locked {locked:,} bytes on the host" in describe(policy.bundle, brief=True)
    assert all(verdict.passed for verdict in policy.check()), "they ask for all the others"
    assert "prefix_kv" in roots_of_copies(world, memory)
    assert sum(len(block.bytes) for block in world.blocks if block.kind == PINNED) == locked
    policy.close()


def test_what_tensorrt_refuses_is_said_with_its_reason(world, demo_bundle):
    with pytest.raises(EngineError, match=r"Magic tag does not match.*anchorvla build"):
        runtime.load(demo_bundle, backend=lambda _: TensorRTBackend(lambda _: memoryview(b"other")))


@pytest.mark.parametrize("what", ["the policy's tensors", "what the host reads", "plan", "scratch"])
def test_too_little_memory_is_said_with_what_is_free(world, demo_bundle, what):
    """In MB of a million bytes. Host and GPU have one memory, as on a board."""
    with runtime.load(demo_bundle, backend=lambda _: TensorRTBackend(make_plan)) as policy:
        tensors, locked = policy.memory.num_bytes, policy.memory.page_locked_bytes
        needed = (8 << 30) - world.free_bytes
    del policy
    gc.collect()
    assert world.free_bytes == 8 << 30
    world.free_bytes = {
        "the policy's tensors": tensors - 1,
        "what the host reads": tensors + locked - 1,
        "plan": tensors + locked + 1000,
        "scratch": needed - 1,
    }[what]
    with pytest.raises(EngineError) as told:
        runtime.load(demo_bundle, backend=lambda _: TensorRTBackend(make_plan))
    if what == "plan":
        assert re.search(r"Requested amount of GPU memory \(\d+ bytes\)", str(told.value))
        assert "its memory was too little: reboot and do this before" in str(told.value)
        return
    figures = r"(.*) MB of the GPU's memory are needed, (.*) of (.*) MB are free: close what else"
    found = re.search(f"{what}.*: {figures}", str(told.value))
    assert found, told.value
    wanted, free, total = map(float, found.groups())
    assert total == 8589.9
    assert free <= wanted < 2.0


def test_without_tensorrt_it_is_said_what_to_do(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorrt", None)  # another test may have brought a stand-in
    with pytest.raises(EngineError, match=r"tensorrt cannot be imported .*comes with JetPack"):
        TensorRTBackend(make_plan)


def test_a_gpu_that_does_not_answer_is_told_in_its_own_words(world, monkeypatch):
    def init():
        raise RuntimeError("cuInit failed: no CUDA-capable device is detected")

    monkeypatch.setattr(sys.modules["pycuda.driver"], "init", init)
    told = r"no usable GPU here: cuInit failed: no CUDA-capable .*; try anchorvla doctor"
    with pytest.raises(EngineError, match=told):
        TensorRTBackend(make_plan)


@pytest.mark.parametrize(
    "missing", ["pycuda.driver", "cuda.bindings.runtime", "cuda.bindings.driver"]
)
def test_without_cuda_from_python_it_is_said_what_to_do(world, monkeypatch, missing):
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(EngineError, match=r"no CUDA from Python here .*anchorvla doctor"):
        TensorRTBackend(make_plan)


def test_golden_inputs_are_those_of_the_bundle(pair):
    golden = read_golden(pair[0].bundle)
    assert golden["frame"].dtype == np.uint8


def test_the_memory_plan_is_told_and_is_what_is_allocated(world, demo_bundle, tmp_path):
    bundle = tmp_path / "bundle"
    shutil.copytree(demo_bundle, bundle)
    policy = runtime.load(bundle, backend=lambda _: TensorRTBackend(make_plan))
    folder = bundle / "plans" / "board"
    folder.mkdir(parents=True)
    for engine in policy.backend._engines:
        scratch = engine._engine.device_memory_size_v2
        record = json.dumps({"engine": engine.path.stem, "scratch_bytes": scratch})
        (folder / f"{engine.path.stem}.json").write_text(record)
    words = describe(policy.bundle, brief=True)
    assert f"tensors {policy.memory.num_bytes:,} bytes in one allocation" in words
    blocks = [block.raw.block.bytes.size for block in policy.backend._launchers[0].scratch]
    assert f"scratch {blocks[0]:,} + {blocks[1]:,} bytes, one block per stream (board)" in words
    assert "bytes, one block per stream if a compiler fused nothing" in words
    weights = sum(p.stat().st_size for p in (bundle / "engines").iterdir())
    assert f"weights {weights:,} bytes" in words
    policy.close()
