"""What calibration keeps of the inputs that it sees, however they come, and after a break."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from quant.calibrate import SAMPLED_ROWS, SAVE_EVERY, Observer, calibrate


def vectors(count, seed=0):
    return np.random.default_rng(seed).standard_normal((count, 3)).astype(np.float32)


@given(st.lists(st.integers(1, 700), min_size=1, max_size=6), st.integers(0, 6))
@settings(max_examples=40, deadline=None)
def test_the_sample_is_every_so_manieth_vector_however_they_are_cut(lengths, interrupted):
    """And so after a break: the next observer goes on from what is known."""
    whole = vectors(sum(lengths))
    observer, start = Observer(), 0
    for number, length in enumerate(lengths):
        if number == interrupted:
            observer = Observer(observer.seen)
        observer.observe(torch.from_numpy(whole[start : start + length]), "layer")
        start += length
    stride = 1
    while -(-len(whole) // stride) > SAMPLED_ROWS:
        stride *= 2
    assert np.array_equal(observer.seen.rows, whole[::stride])
    assert np.array_equal(observer.seen.channel_max, np.abs(whole).max(axis=0))
    assert observer.seen.num_rows == len(whole)
    assert observer.seen.max == np.abs(whole).max()


def test_exactly_as_many_vectors_as_are_kept_are_all_kept():
    for count, kept in ((SAMPLED_ROWS, 256), (SAMPLED_ROWS + 1, 129)):
        observer = Observer()
        observer.observe(torch.from_numpy(vectors(count)), "layer")
        assert len(observer.seen.rows) == kept


def test_what_is_kept_is_a_copy():
    whole = torch.from_numpy(vectors(5))
    before = whole.clone()
    observer = Observer()
    observer.observe(whole, "layer")
    whole.zero_()
    assert np.array_equal(observer.seen.rows, before.numpy())
    assert np.array_equal(observer.seen.channel_max, before.abs().amax(0).numpy())


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_an_input_that_is_not_finite_is_refused_and_changes_nothing(bad):
    observer = Observer()
    observer.observe(torch.ones(2, 3), "layer")
    seen = observer.seen
    with pytest.raises(ValueError, match="^the input of layer is NaN or infinite during calibrati"):
        observer.observe(torch.tensor([[0.0, bad, 1.0]]), "layer")
    assert observer.seen is seen


class Stopped(Exception):
    pass


def runs_of(model, count, *, stop_at=None, done=None):
    def run(number):
        if number == stop_at:
            raise Stopped
        if done is not None:
            done.append(number)
        model(torch.from_numpy(vectors(4, seed=number)))

    return [lambda n=n: run(n) for n in range(count)]


def same(one, other):
    return one.keys() == other.keys() and all(
        np.array_equal(one[n].rows, other[n].rows)
        and np.array_equal(one[n].channel_max, other[n].channel_max)
        and one[n].num_rows == other[n].num_rows
        for n in one
    )


def test_a_run_that_was_cut_off_goes_on_from_its_file(tmp_path):
    model = nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 2))
    keep, count = tmp_path / "folder" / "kept.npz", 2 * SAVE_EVERY + 3
    want = calibrate(model, runs_of(model, count))
    with pytest.raises(Stopped):
        calibrate(model, runs_of(model, count, stop_at=SAVE_EVERY + 2), keep=keep, key="a")
    assert [file.name for file in keep.parent.iterdir()] == ["kept.npz"]
    assert not any(m._forward_pre_hooks for m in model)
    done = []
    assert same(calibrate(model, runs_of(model, count, done=done), keep=keep, key="a"), want)
    assert done == list(range(SAVE_EVERY, count))
    done.clear()
    assert same(calibrate(model, runs_of(model, count, done=done), keep=keep, key="a"), want)
    assert done == []


def test_runs_that_take_long_are_kept_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr("quant.calibrate.SAVE_SECONDS", -1.0)
    model, keep, done = nn.Sequential(nn.Linear(3, 3)), tmp_path / "kept.npz", []
    with pytest.raises(Stopped):
        calibrate(model, runs_of(model, SAVE_EVERY, stop_at=3), keep=keep, key="a")
    calibrate(model, runs_of(model, SAVE_EVERY, done=done), keep=keep, key="a")
    assert done == list(range(3, SAVE_EVERY))


def test_a_file_of_something_else_is_begun_anew(tmp_path):
    model = nn.Sequential(nn.Linear(3, 3))
    keep = tmp_path / "kept.npz"
    calibrate(model, runs_of(model, 2), keep=keep, key="a")
    done = []
    calibrate(model, runs_of(model, 2, done=done), keep=keep, key="b")
    assert done == [0, 1]
    done.clear()
    calibrate(model, runs_of(model, 2, done=done), keep=keep, key="b")
    assert done == []


def test_only_linear_layers_that_are_called_are_seen():
    model = nn.ModuleDict({"a": nn.Linear(3, 3), "idle": nn.Linear(3, 3), "norm": nn.LayerNorm(3)})
    seen = calibrate(model, [lambda: model["norm"](model["a"](torch.ones(1, 3)))])
    assert list(seen) == ["a"]


def test_calibration_keeps_no_gradients():
    model = nn.Sequential(nn.Linear(3, 3))
    outputs = []
    calibrate(model, [lambda: outputs.append(model(torch.ones(1, 3)))])
    assert not outputs[0].requires_grad
