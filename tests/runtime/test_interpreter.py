"""Stages run when an input they depend on changed, and only then."""

import numpy as np
import pytest

from runtime.graph import Graph, Stage, Tensor
from runtime.interpreter import Interpreter

ROW = Tensor(shape=(1,))
GRAPH = Graph(
    inputs=("a", "b"),
    tensors={"k": ROW, "x": ROW, "y": ROW, "z": ROW, "side": ROW},
    stages=(
        Stage(name="constant", function="f", outputs={"o": "k"}),
        Stage(name="from_a", function="f", inputs={"i": "a"}, outputs={"o": "x"}),
        Stage(name="from_b", function="f", inputs={"i": "b", "k": "k"}, outputs={"o": "y"}),
        Stage(name="joined", function="f", inputs={"x": "x", "y": "y"}, outputs={"o": "z"}),
        Stage(name="optional", function="f", inputs={"x": "x"}, outputs={"o": "side"}),
    ),
    outputs=("z", "side"),
)


@pytest.fixture
def interpreter():
    made = Interpreter(GRAPH, [lambda values: None] * len(GRAPH.stages))
    made.set("a", 1)
    made.set("b", 1)
    made.run("z")
    return made


def test_the_first_run_runs_everything_the_leaf_needs(interpreter):
    assert set(interpreter.last_run) == {"constant", "from_a", "from_b", "joined"}


def test_nothing_runs_when_nothing_changed(interpreter):
    assert not interpreter.set("a", 1)
    interpreter.run("z")
    assert not interpreter.last_run


def test_a_changed_input_runs_its_descendants_only(interpreter):
    assert interpreter.set("b", 2)
    interpreter.run("z")
    assert set(interpreter.last_run) == {"from_b", "joined"}


def test_a_leaf_nobody_asks_for_never_runs(interpreter):
    interpreter.set("a", 2)
    interpreter.run("z")
    assert interpreter.num_runs[4] == 0
    interpreter.run("side")
    assert set(interpreter.last_run) == {"optional"}


def test_an_array_counts_as_changed_by_its_bits():
    interpreter = Interpreter(GRAPH, [lambda values: None] * len(GRAPH.stages))
    assert interpreter.set("a", np.zeros(3, np.float32))
    assert not interpreter.set("a", np.zeros(3, np.float32))
    assert interpreter.set("a", np.zeros(3, np.float64))
    assert interpreter.set("a", np.zeros((3, 1)))
    assert interpreter.set("a", np.array([[0], [0], [1]]))


def test_a_stage_that_failed_runs_again():
    fail = [True]

    def call(values):
        if fail[0]:
            raise RuntimeError("interrupted half-way")

    calls = [lambda values: None, call, *[lambda values: None] * 3]
    interpreter = Interpreter(GRAPH, calls)
    interpreter.set("a", 1)
    interpreter.set("b", 1)
    with pytest.raises(RuntimeError):
        interpreter.run("z")
    fail[0] = False
    interpreter.run("z")
    assert set(interpreter.last_run) == {"from_a", "from_b", "joined"}


def test_forget_keeps_what_depends_on_nothing(interpreter):
    interpreter.forget()
    interpreter.run("z")
    assert set(interpreter.last_run) == {"from_a", "from_b", "joined"}
