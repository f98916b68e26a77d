"""The examples in docstrings of the public API are typed and compared, as a reader would."""

import doctest

import numpy as np
import pytest

import runtime

EXAMPLES = {
    "load": runtime.load,
    "Policy.start": runtime.Policy.start,
    "Episode.act": runtime.Episode.act,
}


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_prints_what_it_says(name, policy, demo_bundle, image, monkeypatch):
    monkeypatch.chdir(demo_bundle.parent)
    assert demo_bundle.name == "bundle"
    names = {
        "load": runtime.load,
        "policy": policy,
        "image": image(1),
        "state": np.array([0.0, 0.6, 0.2, 1.0], np.float32),
    }
    found = doctest.DocTestFinder(recurse=False).find(EXAMPLES[name], name, globs=names)
    assert sum(len(test.examples) for test in found) >= 1
    runner = doctest.DocTestRunner()
    for test in found:
        assert runner.run(test).failed == 0
