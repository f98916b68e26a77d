"""Layers whose codes lie on disk: the same layers, made once."""

import dataclasses

import numpy as np
import pytest
import torch
from torch import nn

import quant.apply
from models.stored import StoredTensor
from quant import codes
from quant.apply import prepare_folded, quantize_folded
from quant.calibrate import Statistics, calibrate
from quant.codes import key_of
from quant.modules import QuantLinear
from quant.recipes import Recipe, Rule

WIDTH = 128


def recipe(*formats):
    return Recipe(
        name="trial-unproved",
        rules=tuple(Rule(f"{n}", *form) for n, form in enumerate(formats)),
        target="orin",
        purpose="memory",
        base="bfloat16",
        chain_tolerance=1.0,
    )


FORMATS = (("w8",), ("w4", "gptq"), ("w8a8", "smooth"), ("w8a8", "tokens"), ("w8a8", "outliers"))


@pytest.fixture
def network(monkeypatch):
    # bitsandbytes, which looks for them otherwise, takes seconds to import.
    monkeypatch.setattr(quant.apply, "outlier_channels", lambda rows: np.array([3, 5]))
    torch.manual_seed(0)
    layers = (nn.Linear(WIDTH, WIDTH, bias=n % 2 == 0) for n in range(len(FORMATS)))
    return nn.Sequential(*layers).requires_grad_(False)


def folded_of(network, chosen):
    rows = torch.randn(40, WIDTH, generator=torch.Generator().manual_seed(1))
    return prepare_folded(network, chosen, calibrate(network, [lambda: network(rows)]))


def test_layers_on_disk_are_those_in_memory(network, tmp_path):
    chosen = recipe(*FORMATS)
    folded = folded_of(network, chosen)
    want, got = quantize_folded(folded, chosen), quantize_folded(folded, chosen, tmp_path)
    rows = torch.randn(7, WIDTH, generator=torch.Generator().manual_seed(2))
    for one, other in zip(want, got, strict=True):
        assert isinstance(one, QuantLinear) and isinstance(other, QuantLinear)
        assert (one.bits, one.block) == (other.bits, other.block)
        assert one.state_dict().keys() == other.state_dict().keys()
        for name, value in one.state_dict().items():
            assert value.dtype == other.state_dict()[name].dtype
            assert torch.equal(value, other.state_dict()[name]), name
        assert isinstance(other.codes, StoredTensor)
        assert torch.equal(one(rows), other(rows))
    assert len(list(tmp_path.iterdir())) == len(FORMATS)


def test_a_run_that_was_cut_off_goes_on_at_its_next_layer(network, tmp_path, monkeypatch):
    chosen = recipe(*FORMATS)
    folded = folded_of(network, chosen)
    quantize_folded(folded, chosen, tmp_path / "whole")
    real, made = quant.apply.quantize_layer, []

    def killed(*arguments):
        if len(made) == 2:
            raise KeyboardInterrupt
        made.append(1)
        return real(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(quant.apply, "quantize_layer", killed)
        with pytest.raises(KeyboardInterrupt):
            quantize_folded(folded, chosen, tmp_path / "cut")
    again = []
    monkeypatch.setattr(quant.apply, "quantize_layer", lambda *a: again.append(1) or real(*a))
    quantize_folded(folded, chosen, tmp_path / "cut")
    assert len(again) == len(FORMATS) - 2
    want, got = (
        {f.name: f.read_bytes() for f in (tmp_path / name).iterdir()} for name in ("whole", "cut")
    )
    assert got == want


def test_another_recipe_makes_the_layers_that_it_changes(network, tmp_path):
    first = recipe(*FORMATS)
    quantize_folded(folded_of(network, first), first, tmp_path)
    before = set(tmp_path.iterdir())
    other = recipe(("w4",), *FORMATS[1:])
    quantize_folded(folded_of(network, other), other, tmp_path)
    assert len(set(tmp_path.iterdir()) - before) == 1


def test_a_key_is_of_everything_that_codes_depend_on():
    random = np.random.default_rng(0)
    rows = random.normal(size=(9, WIDTH)).astype(np.float32)
    seen = Statistics(np.abs(rows).max(axis=0), rows, 9)
    weight = torch.from_numpy(random.normal(size=(6, WIDTH)).astype(np.float32))
    factor, rule = np.ones(WIDTH, np.float32), Rule("a", "w8a8", "smooth")
    moved = weight.clone()
    moved[5, 7] = torch.nextafter(moved[5, 7], torch.tensor(9.0))
    other_rows, other_max = rows.copy(), seen.channel_max.copy()
    other_rows[8, 0] += 1
    other_max[0] += 1
    keys = [
        key_of(weight, rule, seen, factor),
        key_of(moved, rule, seen, factor),
        key_of(weight.T.contiguous(), rule, seen, factor),
        key_of(weight, Rule("a", "w8a8", "tokens"), seen, factor),
        key_of(weight, Rule("a", "w8"), seen, factor),
        key_of(weight, rule, dataclasses.replace(seen, rows=other_rows), factor),
        key_of(weight, rule, dataclasses.replace(seen, channel_max=other_max), factor),
        key_of(weight, rule, None, factor),
        key_of(weight, rule, seen, 2 * factor),
        key_of(weight, rule, seen, None),
    ]
    assert len(set(keys)) == len(keys)
    assert key_of(weight.clone(), Rule("b", "w8a8", "smooth"), seen, factor.copy()) == keys[0]


def test_a_key_is_of_the_code_that_makes_codes(monkeypatch):
    def key():
        return key_of(torch.ones(2, 3), Rule("a", "w8"), None, None)

    before = key()
    monkeypatch.setattr(codes, "_code", lambda: b"another version of it")
    assert key() != before
