"""A module whose weights lie on disk: the same numbers, and in memory only what is used."""

import copy

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional

from models import stored
from models.stored import Rows, Shelf, StoredTensor, map_of, plain, put

WIDTH = 48


class Network(nn.Module):
    """A weight of every kind, some of them read past their module."""

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(50, WIDTH)
        self.norm = nn.LayerNorm(WIDTH)
        self.layers = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.convolution = nn.Conv3d(3, WIDTH, (1, 4, 4), bias=False)
        self.token = nn.Parameter(torch.zeros(WIDTH))
        self.register_buffer("shift", torch.zeros(1, WIDTH))

    def forward(self, ids):
        x = torch.cat([self.table(ids), self.token[None]]) + self.shift
        x = functional.linear(self.norm(x), self.convolution.weight.flatten(1))
        for layer in self.layers:
            x = functional.gelu(layer(x))
        return x @ self.layers[0].weight.T + self.layers[0].bias


@pytest.fixture
def shelf(monkeypatch):
    """As small as two of the layers."""
    made = Shelf(2 * 4 * WIDTH * WIDTH)
    monkeypatch.setattr(stored, "SHELF", made)
    return made


@pytest.fixture
def pair(tmp_path):
    """The network in memory, and another one whose weights lie on disk, in bfloat16."""
    torch.manual_seed(0)
    network = Network().requires_grad_(False)
    for tensor in network.state_dict().values():
        tensor.copy_(torch.randn(tensor.shape).bfloat16())
    file = tmp_path / "network.safetensors"
    save_file({name: t.bfloat16() for name, t in network.state_dict().items()}, file)
    with torch.device("meta"):
        lazy = Network()
    for name, tensor in network.state_dict().items():
        put(lazy, name, StoredTensor(tensor.shape, torch.float32, map_of(file, name)))
    return network, lazy


def unreadable():
    raise AssertionError("it was read")


IDS = torch.tensor([3, 1, 4, 1, 5])


def test_it_computes_the_same_bits_however_little_is_kept(pair, shelf):
    network, lazy = pair
    with torch.no_grad():
        want = network(IDS)
        for _ in range(2):
            assert torch.equal(lazy(IDS), want)
        assert torch.equal(copy.deepcopy(lazy)(IDS), want)


def test_no_more_is_kept_than_was_said(pair, shelf):
    _, lazy = pair
    with torch.no_grad():
        lazy(IDS)
    kept = list(shelf._kept.values())
    assert 0 < sum(t.nbytes for t in kept) == shelf._num_bytes <= shelf._limit
    whole = lazy.table.weight.load()
    assert whole.nbytes > shelf._limit or any(t is whole for t in shelf._kept.values())


def test_what_was_used_last_is_kept_and_goes_with_its_module(shelf):
    reads = []

    def make(number):
        def source():
            reads.append(number)
            return torch.full((WIDTH, WIDTH), float(number))

        return StoredTensor((WIDTH, WIDTH), torch.float32, source)

    first, second, third = map(make, range(3))
    for tensor in (first, second, first, third, first, second):
        tensor.load()
    assert reads == [0, 1, 2, 1]
    del tensor, first, second, third
    assert not shelf._kept and shelf._num_bytes == 0


def test_what_is_made_of_a_weight_is_kept_beside_it_and_goes_with_it(shelf):
    made = []

    def double(read):
        made.append(1)
        return read * 2

    size = WIDTH * WIDTH
    codes = StoredTensor((size,), torch.int8, lambda: torch.full((size,), 3, dtype=torch.int8))
    for _ in range(2):
        assert torch.equal(codes.made(size, double), torch.full((size,), 6, dtype=torch.int8))
        assert torch.equal(codes.load(), torch.full((size,), 3, dtype=torch.int8))
    assert made == [1] and shelf._num_bytes == 2 * size
    del codes
    assert not shelf._kept and shelf._num_bytes == 0


def test_shapes_and_names_are_known_without_reading():
    layer = nn.Linear(3, 5, device="meta")
    for name, shape in (("weight", (5, 3)), ("bias", (5,))):
        put(layer, name, StoredTensor(shape, torch.float32, unreadable))
    assert sum(p.numel() for p in layer.parameters()) == 20
    assert {n: tuple(t.shape) for n, t in layer.state_dict().items()} == {
        "weight": (5, 3),
        "bias": (5,),
    }
    assert isinstance(layer.weight, nn.Parameter)
    assert layer.weight.dtype == torch.float32 and layer.weight.ndim == 2 and len(layer.bias) == 5
    assert copy.deepcopy(layer).weight is layer.weight
    with pytest.raises(AssertionError, match="it was read"):
        layer(torch.zeros(3))


def test_of_a_table_only_the_rows_asked_for_are_read(pair, monkeypatch):
    network, lazy = pair
    monkeypatch.setattr(StoredTensor, "read", unreadable)
    want = network.table.weight.numpy()
    assert torch.equal(lazy.table(IDS), network.table(IDS))
    for table in (Rows(lazy.table.weight), Rows(network.table.weight)):
        assert table.shape == want.shape and len(table) == 50
        assert np.array_equal(table[[7, 0]], want[[7, 0]])
        assert np.array_equal(table[10:13], want[10:13])
        assert table[[7]].dtype == np.float32


@pytest.mark.parametrize(
    "change",
    [
        lambda weight: weight.mul_(2),
        lambda weight: weight.data.fill_(0),
        lambda weight: weight.detach().__setitem__(0, 1.0),
        lambda weight: weight.__iadd__(1),
        lambda weight: weight.copy_(torch.zeros(WIDTH, WIDTH)),
    ],
)
def test_a_weight_on_disk_is_not_changed(pair, change):
    _, lazy = pair
    with pytest.raises(
        RuntimeError, match=r"would change a weight that lies on disk; make its mod"
    ):
        change(lazy.layers[0].weight)


def test_an_edited_weight_is_changed_each_time_it_is_read(pair, shelf):
    network, lazy = pair
    weight = lazy.layers[0].weight
    twice = weight.edited(lambda w: w.mul_(3)).edited(lambda w: w[:2].add_(1))
    want = network.layers[0].weight * 3
    want[:2] += 1
    for _ in range(2):
        assert torch.equal(twice.load(), want)
        assert torch.equal(twice.rows(slice(1, 4)), want[1:4])
        shelf.clear()
    assert torch.equal(weight.load(), network.layers[0].weight)
    assert isinstance(twice, nn.Parameter)


def test_an_edit_leaves_what_it_was_read_from_alone():
    """A source may map a file for several, or give the same tensor again."""
    given = torch.ones(WIDTH)
    edited = StoredTensor((WIDTH,), torch.float32, lambda: given).edited(lambda w: w.mul_(3))
    assert torch.equal(edited.load(), torch.full((WIDTH,), 3.0))
    assert torch.equal(given, torch.ones(WIDTH))


def test_a_plain_copy_is_in_memory_and_nobody_elses(pair):
    network, lazy = pair
    lazy.layers[1] = nn.Linear(WIDTH, WIDTH).requires_grad_(False)
    made = plain(lazy)
    assert not any(isinstance(t, StoredTensor) for t in made.state_dict().values())
    assert type(made.token) is nn.Parameter and type(made.shift) is torch.Tensor
    assert made.layers[1].weight is lazy.layers[1].weight
    made.layers[0].weight.mul_(2)
    assert torch.equal(lazy.layers[0].weight.load(), network.layers[0].weight)
