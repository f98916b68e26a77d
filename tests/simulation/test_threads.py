"""A policy belongs to no thread: loaded on one, run on another, closed on a third.

pycuda's context is current on one thread at a time, and on none between calls. The rules of the
simulated driver are broken here by planted faults, each as a board would punish it.
"""

import contextlib
import sys
import threading
from types import SimpleNamespace

import numpy as np
import pytest

import runtime
from runtime.backends.cuda import Owned
from runtime.backends.cuda_context import PrimaryContext, wait_of_environment
from runtime.backends.tensorrt import TensorRTBackend
from runtime.errors import EngineError, EpisodeError
from tests.simulation import Violation, install, make_plan


@pytest.fixture
def world(monkeypatch):
    world = install(monkeypatch)
    world.is_verified = True
    return world


def load(bundle, **options):
    return runtime.load(bundle, backend=lambda _: TensorRTBackend(make_plan, **options))


def on_thread(call):
    """What `call` returns or raises on a thread of its own, which is over then."""
    came = []

    def run():
        try:
            came.append(call())
        except BaseException as error:
            came.append(error)

    thread = threading.Thread(target=run, name="thinker")
    thread.start()
    thread.join()
    (result,) = came
    if isinstance(result, BaseException):
        raise result
    return result


def ticks(policy, image):
    episode = policy.start(anchor=image(0), instruction="open the drawer")
    state = np.zeros(4, np.float32)
    return [episode.act({"frame": image(n), "state": state}).actions for n in (1, 2, 3)]


def test_a_policy_is_loaded_run_and_closed_on_three_threads(world, demo_bundle, image):
    expected = ticks(runtime.load(demo_bundle), image)
    policy = on_thread(lambda: load(demo_bundle))
    got = on_thread(lambda: ticks(policy, image))
    policy.close()
    assert np.array_equal(got, expected)
    assert not +world.alive
    assert not +world.pushed, "a context is still current somewhere"
    assert (world.violations, world.aborted) == ([], [])


def test_a_policy_may_be_dropped_on_a_thread_that_never_used_it(world, demo_bundle, image):
    """Arrays on page-locked memory outlive close: they give it back wherever the last one goes."""
    kept = []
    policy = load(demo_bundle)
    kept.append(policy.memory.host("actions"))
    policy.close()
    assert world.alive["page-locked allocation"] == 1
    on_thread(kept.clear)
    assert not +world.alive
    assert world.violations == []


def test_close_waits_for_the_thread_that_thinks(world, demo_bundle, image):
    """The loop stops: the main thread closes while another one is in the middle of a tick."""
    policy = load(demo_bundle)
    is_inside, next_frame, ended = threading.Event(), threading.Event(), []
    real = world.run_engine

    def slowly(compute, outputs):
        is_inside.set()
        real(compute, outputs)

    def think():
        episode = policy.start(anchor=image(0), instruction="open the drawer")
        state, number = np.zeros(4, np.float32), 0
        while True:
            number += 1
            episode.act({"frame": image(number), "state": state})
            next_frame.wait(0.01)

    def thinker():
        try:
            think()
        except EpisodeError as error:
            ended.append(str(error))

    world.run_engine = slowly
    thread = threading.Thread(target=thinker)
    thread.start()
    assert is_inside.wait(60)
    policy.close()
    thread.join(60)
    assert not thread.is_alive()
    assert ended == ["this policy was closed: load the bundle again"]
    assert not +world.alive
    assert (world.violations, world.aborted) == ([], [])


def test_a_context_that_nobody_makes_current_is_an_error(world, demo_bundle, monkeypatch):
    monkeypatch.setattr(PrimaryContext, "__enter__", lambda self: None)
    monkeypatch.setattr(PrimaryContext, "__exit__", lambda self, *error: None)
    with pytest.raises(EngineError, match="a stream failed: __init__ failed: invalid device cont"):
        load(demo_bundle)


def test_a_context_that_is_current_where_it_was_loaded_only_is_an_error(
    world, demo_bundle, image, monkeypatch
):
    """As with pycuda.autoprimaryctx, which pushes it once, on the thread that imports it."""
    policy = load(demo_bundle)
    world.push()
    monkeypatch.setattr(PrimaryContext, "__enter__", lambda self: None)
    monkeypatch.setattr(PrimaryContext, "__exit__", lambda self, *error: None)
    ticks(policy, image)
    with pytest.raises(EngineError, match="failed: invalid device context"):
        on_thread(lambda: ticks(policy, image))


def test_a_context_that_a_thread_leaves_current_takes_the_process_down(
    world, demo_bundle, image, monkeypatch
):
    policy = load(demo_bundle)
    monkeypatch.setattr(PrimaryContext, "__exit__", lambda self, *error: None)
    on_thread(lambda: ticks(policy, image))
    assert world.aborted == ["thinker"]


def test_what_is_let_go_without_the_context_is_not_freed(world, monkeypatch):
    cuda = TensorRTBackend(make_plan).cuda
    monkeypatch.delattr(Owned, "__del__")
    for make, what in (
        (cuda.stream, "a stream"),
        (lambda: cuda.allocate(8, "a test"), "memory on the GPU"),
        (lambda: cuda.page_locked((2,), np.dtype(np.float32)), "page-locked memory"),
    ):
        world.violations.clear()
        made = make()
        del made
        assert world.violations == [f"{what} is let go on a thread where no context is current"]


def test_nested_calls_push_the_context_once(world, monkeypatch):
    context, pushes = TensorRTBackend(make_plan).cuda.context, []
    monkeypatch.setattr(context._context, "push", lambda: pushes.append(1) or world.push())
    with context:
        with context:
            assert world.is_current
        assert world.is_current, "the inner block ended, the outer one did not"
    assert not world.is_current
    assert pushes == [1]


def test_each_thread_makes_it_current_for_itself(world):
    """One thread gives memory back while another one waits for the GPU."""
    context, seen = TensorRTBackend(make_plan).cuda.context, []

    def enter():
        with context:
            seen.append(world.is_current)
        seen.append(world.is_current)

    with context:
        on_thread(enter)
        assert world.is_current
    assert seen == [True, False]


def test_memory_is_given_back_outside_of_a_batch_too(world):
    cuda = TensorRTBackend(make_plan).cuda
    blocks = [cuda.allocate(8, "a test")]
    on_thread(lambda: cuda.free(blocks[0]))
    assert not +world.alive
    blocks.clear()
    assert (world.num_dropped, world.violations) == (0, [])


def test_the_context_goes_although_the_call_fails(world):
    context = TensorRTBackend(make_plan).cuda.context
    with contextlib.suppress(ZeroDivisionError), context:
        raise ZeroDivisionError
    assert not +world.pushed


def test_a_context_that_cannot_be_made_current_is_said(world, monkeypatch):
    cuda = TensorRTBackend(make_plan).cuda

    def push():
        raise cuda.driver.Error("context is destroyed")

    monkeypatch.setattr(cuda.context._context, "push", push)
    with pytest.raises(EngineError, match="the context cannot be made current: context is destr"):
        cuda.event()


@pytest.mark.parametrize(("asked", "flags"), [(None, 4), ("block", 4), ("spin", 1)])
def test_how_the_host_waits_is_set_before_the_context_exists(world, asked, flags):
    backend = TensorRTBackend(make_plan, wait=asked)
    assert (backend.waits, world.primary_flags) == (asked or "block", flags)
    again = TensorRTBackend(make_plan, wait=asked)
    assert again.waits == backend.waits, "the second policy of a process finds it as it is"


@pytest.mark.parametrize(
    ("flags", "name"), [(0, "auto"), (1, "spin"), (2, "yield"), (4, "block"), (0x0C, "block")]
)
def test_a_context_of_another_library_is_taken_as_it_is_and_said(world, flags, name):
    """The bits above the lowest three are about other things: 8 maps the host's memory."""
    world.has_primary_context, world.primary_flags = True, flags
    assert TensorRTBackend(make_plan).waits == name


def test_a_way_that_was_asked_for_and_cannot_be_had_is_an_error(world):
    world.has_primary_context = True
    told = r"'spin' was asked for .* exists already and has 'auto': load the policy before other"
    with pytest.raises(EngineError, match=told):
        TensorRTBackend(make_plan, wait="spin")


def test_flags_that_come_too_late_are_caught(world, monkeypatch):
    TensorRTBackend(make_plan)
    monkeypatch.setattr(PrimaryContext, "_state", lambda self: (4, 0))
    with pytest.raises(Violation, match="flags are set for a context that exists already"):
        TensorRTBackend(make_plan)


def test_the_environment_chooses_how_the_host_waits(monkeypatch):
    for word, expected in (("spin", "spin"), ("block", "block"), ("", None)):
        monkeypatch.setenv("ANCHORVLA_CUDA_WAIT", word)
        assert wait_of_environment() == expected
    monkeypatch.setenv("ANCHORVLA_CUDA_WAIT", "yield")
    with pytest.raises(ValueError, match="ANCHORVLA_CUDA_WAIT must be block or spin, got 'yield'"):
        wait_of_environment()


def test_a_driver_that_refuses_the_flags_is_said(world, monkeypatch):
    refusal = SimpleNamespace(name="CUDA_ERROR_INVALID_VALUE")
    monkeypatch.setattr(
        sys.modules["cuda.bindings.driver"], "cuDevicePrimaryCtxSetFlags", lambda *a: (refusal,)
    )
    told = "cuDevicePrimaryCtxSetFlags answered CUDA_ERROR_INVALID_VALUE"
    with pytest.raises(EngineError, match=told):
        TensorRTBackend(make_plan)


def test_a_driver_that_is_too_old_is_said_with_the_remedy(world, demo_bundle):
    """cuda-bindings 12.9 on the driver of JetPack 6, which has CUDA 12.6."""
    world.runtime_version = 12090
    told = r"answered cudaErrorInsufficientDriver; the driver is older .*robot-tensorrt\.txt$"
    with pytest.raises(EngineError, match=told):
        load(demo_bundle)
    world.runtime_version = 12000
    load(demo_bundle).close()
