"""Stages run when an input they depend on changed, and only then."""

import numpy as np
import pytest

from runtime.engine import in_order
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


def make_interpreter(**calls):
    """Host functions that do nothing, but for `calls`."""
    idle = {stage.name: lambda values: None for stage in GRAPH.stages}
    return Interpreter(GRAPH, idle | calls, in_order(GRAPH, {}, None))


@pytest.fixture
def interpreter():
    made = make_interpreter()
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
    interpreter = make_interpreter()
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

    interpreter = make_interpreter(from_a=call)
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


ALTERNATING = Graph(
    inputs=("a",),
    tensors={name: ROW for name in "uvwxyz"},
    stages=(
        Stage(name="first", function="f", inputs={"i": "a"}, outputs={"o": "u"}),
        Stage(name="left", engine="e", inputs={"i": "u"}, outputs={"o": "v"}),
        Stage(name="late", function="f", inputs={"i": "v"}, outputs={"o": "w"}),
        Stage(name="second", function="f", inputs={"i": "a"}, outputs={"o": "x"}),
        Stage(name="right", engine="e", inputs={"i": "x"}, outputs={"o": "y"}),
        Stage(name="joined", engine="e", inputs={"i": "v", "j": "y"}, outputs={"o": "z"}),
    ),
    outputs=("w", "z"),
)


def test_engine_stages_that_no_host_function_separates_are_launched_together():
    order, launches = [], []

    def launch(stages, wanted):
        order.extend(stages)
        launches.append((stages, wanted))
        return dict.fromkeys(stages, 0.0)

    def note(name):
        return lambda values: order.append(name)

    hosts = {s.name: note(s.name) for s in ALTERNATING.stages if s.function}
    interpreter = Interpreter(ALTERNATING, hosts, launch)
    interpreter.set("a", 1)
    interpreter.run("z")
    assert order == ["first", "second", "left", "right", "joined"]
    assert launches == [(("left", "right", "joined"), frozenset())]
    interpreter.set("a", 2)
    interpreter.run("w")
    assert launches[1] == (("left",), frozenset("v")), "what a host function reads next is wanted"
    assert order[5:] == ["first", "left", "late"]
    interpreter.run("z")
    assert launches[2] == (("right", "joined"), frozenset())


def test_phases_alternate_between_host_and_engines_and_keep_producers_first():
    assert ALTERNATING.phases == (0, 1, 2, 0, 1, 1)
