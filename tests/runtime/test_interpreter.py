"""Stages run when an input they depend on changed, and only then."""

import itertools
import time

import numpy as np
import pytest

from runtime.declarations import Store, Tensor
from runtime.engine import in_order
from runtime.graph import Graph, Stage
from runtime.interpreter import NEVER, Interpreter
from tests.graphs import leaves, vectors

ROW = Tensor(shape=(1,))
GRAPH = Graph(
    inputs=vectors("a", "b"),
    tensors={"k": ROW, "x": ROW, "y": ROW, "z": ROW, "side": ROW},
    stages=(
        Stage(name="constant", function="f", outputs={"o": "k"}),
        Stage(name="from_a", function="f", inputs={"i": "a"}, outputs={"o": "x"}),
        Stage(name="from_b", function="f", inputs={"i": "b", "k": "k"}, outputs={"o": "y"}),
        Stage(name="joined", function="f", inputs={"x": "x", "y": "y"}, outputs={"o": "z"}),
        Stage(name="optional", function="f", inputs={"x": "x"}, outputs={"o": "side"}),
    ),
    outputs=leaves("z", "side"),
)


def make_interpreter(**calls):
    """Host functions that do nothing, but for `calls`."""
    idle = {stage.name: lambda values: None for stage in GRAPH.stages}
    return Interpreter(GRAPH, idle | calls, in_order(GRAPH, {}, None), None)


@pytest.fixture
def interpreter():
    made = make_interpreter()
    made.set("a", 1)
    made.set("b", 1)
    made.run("z")
    return made


def test_the_first_run_runs_everything_the_leaf_needs(interpreter):
    assert set(interpreter.last_run) == {"constant", "from_a", "from_b", "joined"}


def test_several_leaves_are_brought_up_to_date_at_once_and_what_they_share_runs_once(interpreter):
    interpreter.reset_statistics()
    interpreter.set("a", 5)
    interpreter.run("z", "side")
    assert set(interpreter.last_run) == {"from_a", "joined", "optional"}
    assert sum(interpreter.num_runs) == 3


def test_nothing_runs_when_nothing_changed(interpreter):
    assert interpreter.set("a", 1) is False
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
    assert interpreter.set("a", np.zeros((2, 3), np.float32, order="F"))
    assert not interpreter.set("a", np.zeros((2, 3), np.float32))
    assert interpreter.set("a", -np.zeros((2, 3), np.float32)), "minus zero has other bits"
    assert interpreter.set("a", (1, 2)), "and text is no array"
    assert not interpreter.set("a", (1, 2))


@pytest.mark.parametrize("place", [0, 4095, 4096, 4097, -1])
def test_a_picture_counts_as_changed_wherever_it_differs(place):
    interpreter, picture = make_interpreter(), np.full((100, 120, 3), 5, np.uint8)
    assert interpreter.set("a", picture)
    assert not interpreter.set("a", picture.copy())
    changed = picture.copy()
    changed.reshape(-1)[place] = 6
    assert interpreter.set("a", changed)


def test_a_host_function_sees_the_newest_values():
    seen = []
    interpreter = make_interpreter(from_a=lambda values: seen.append(dict(values)))
    interpreter.set("a", 1)
    interpreter.set("b", 2)
    interpreter.run("z")
    interpreter.set("a", 3)
    interpreter.set("b", 4)
    interpreter.run("z")
    assert seen == [{"a": 1, "b": 2}, {"a": 3, "b": 4}]


def test_statistics_add_up_until_they_are_reset():
    interpreter = make_interpreter(from_a=lambda values: time.sleep(0.002))
    for value in (1, 2):
        interpreter.set("a", value)
        interpreter.run("z")
    assert interpreter.num_runs == [1, 2, 1, 2, 0]
    assert 0.004 <= interpreter.total_s[1] < 2
    assert 0.002 <= interpreter.last_run["from_a"] < interpreter.total_s[1]
    assert interpreter.total_s[4] == 0
    interpreter.reset_statistics()
    assert interpreter.num_runs == [0] * 5
    assert interpreter.total_s == [0.0] * 5


def test_after_a_failed_transaction_everything_is_as_before(interpreter):
    interpreter.set("b", 5)  # from before, and still waiting to be computed
    before = interpreter.num_runs.copy(), interpreter.total_s.copy(), interpreter.last_run
    with pytest.raises(KeyboardInterrupt), interpreter.transaction():
        interpreter.set("a", 2)
        interpreter.run("z")
        raise KeyboardInterrupt
    assert interpreter.values == {"a": 1, "b": 5}
    assert (interpreter.num_runs, interpreter.total_s, interpreter.last_run) == before
    assert not interpreter.set("a", 1)
    interpreter.run("z")
    assert set(interpreter.last_run) == {"from_a", "from_b", "joined"}, "their buffers are spoiled"
    assert interpreter.num_runs == [1, 2, 2, 2, 0]


def test_a_stage_that_fails_half_way_runs_again_for_the_old_inputs_too():
    fail = [False]

    def call(values):
        if fail[0]:
            raise RuntimeError("the buffer is half-written")

    interpreter = make_interpreter(from_a=call)
    interpreter.set("a", 1)
    interpreter.set("b", 1)
    interpreter.run("z")
    fail[0] = True
    with pytest.raises(RuntimeError), interpreter.transaction():
        interpreter.set("a", 2)
        interpreter.run("z")
    fail[0] = False
    interpreter.run("z")
    assert set(interpreter.last_run) == {"from_a"}


def test_what_a_failed_transaction_did_not_run_stays_valid(interpreter):
    with pytest.raises(RuntimeError), interpreter.transaction():
        interpreter.set("b", 2)
        raise RuntimeError
    interpreter.run("z")
    assert not interpreter.last_run
    interpreter.set("b", 3)
    interpreter.run("z")
    assert set(interpreter.last_run) == {"from_b", "joined"}, "no version comes twice"


def test_a_transaction_that_ends_well_keeps_what_it_did(interpreter):
    with interpreter.transaction():
        interpreter.set("a", 2)
        interpreter.run("z")
    interpreter.run("z")
    assert not interpreter.last_run
    assert interpreter.values["a"] == 2


def test_own_time_is_that_of_a_run_less_its_stages(monkeypatch):
    """On a clock that advances by a second whenever it is read: at both ends of a run, and of each
    stage."""
    interpreter = make_interpreter()
    interpreter.set("a", 1)
    interpreter.set("b", 1)
    clock = itertools.count()
    monkeypatch.setattr(time, "perf_counter", lambda: float(next(clock)))
    interpreter.run("z")
    assert interpreter.last_run == dict.fromkeys(("constant", "from_a", "from_b", "joined"), 1.0)
    assert interpreter.own_s == 9 - 4
    interpreter.set("b", 2)
    interpreter.run("z")
    assert interpreter.own_s == 5 - 2


def test_a_batch_that_failed_runs_again_whole():
    fail = [True]

    def launch(stages, wanted):
        if fail[0] and "joined" in stages:
            raise RuntimeError
        return dict.fromkeys(stages, 0.5)

    hosts = {s.name: lambda values: None for s in ALTERNATING.stages if s.function}
    interpreter = Interpreter(ALTERNATING, hosts, launch, None)
    interpreter.set("a", 1)
    with pytest.raises(RuntimeError):
        interpreter.run("z")
    fail[0] = False
    interpreter.run("z")
    assert interpreter.last_run == {"left": 0.5, "right": 0.5, "joined": 0.5}


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


TWINS = Graph(
    inputs=vectors("a", "b"),
    tensors=dict.fromkeys(("u", "x", "v", "y", "z", "held"), ROW),
    stages=(
        Stage(name="u", function="f", inputs={"i": "a"}, outputs={"o": "u"}),
        Stage(name="x", function="f", inputs={"i": "u"}, outputs={"o": "x"}),
        Stage(name="v", function="f", inputs={"i": "b"}, outputs={"o": "v"}),
        Stage(name="y", function="f", inputs={"i": "v"}, outputs={"o": "y"}),
        Stage(name="z", function="f", inputs={"i": "x", "j": "y"}, outputs={"o": "z"}),
    ),
    outputs=leaves("z"),
    stores={"store": Store(entries=(("held",),), members=(("x",), ("y",)))},
)


@pytest.fixture
def twins():
    """An interpreter, and what was copied."""
    copied = []
    idle = {stage.name: lambda values: None for stage in TWINS.stages}
    made = Interpreter(TWINS, idle, in_order(TWINS, {}, None), lambda *names: copied.append(names))
    return made, copied


def test_a_value_that_both_show_is_computed_once_and_copied(twins):
    interpreter, copied = twins
    interpreter.set("a", 1)
    interpreter.set("b", 1)
    interpreter.run("z")
    assert set(interpreter.last_run) == {"u", "x", "z"}
    assert copied == [("x", "y"), ("x", "held")]
    interpreter.set("b", 2)
    interpreter.run("z")
    assert set(interpreter.last_run) == {"v", "y", "z"}
    assert copied[2:] == [("y", "held")]
    interpreter.set("a", 2)
    interpreter.run("z")
    assert set(interpreter.last_run) == {"z"}
    assert copied[3:] == [("held", "x")]


def test_a_copied_stage_that_runs_again_runs_behind_all_that_it_reads(twins):
    """What is on the way to a copied result is of another value."""
    interpreter, copied = twins
    for value in (1, 2):
        interpreter.set("a", value)
        interpreter.set("b", 2)
        interpreter.run("z")
    interpreter.set("b", 3)
    interpreter.run("z")
    interpreter._seen[1] = NEVER  # as no call of ours leaves it
    interpreter.run("z")
    assert set(interpreter.last_run) == {"u", "x"}


def halves(name):
    """name -> 0 -> 1 and 2; name -> 3. The first reads a constant too."""
    reads = ({"i": name, "k": "k"}, {"i": f"{name}0"}, {"i": f"{name}0"}, {"i": name})
    return tuple(
        Stage(name=f"{name}{i}", function="f", inputs=inputs, outputs={"o": f"{name}{i}"})
        for i, inputs in enumerate(reads)
    )


PARTS = Graph(
    inputs=vectors("a", "b"),
    tensors=dict.fromkeys(("k", *(f"{n}{i}" for n in "ab" for i in range(4)), *"pqr"), ROW),
    stages=(Stage(name="k", function="f", outputs={"o": "k"}), *halves("a"), *halves("b")),
    outputs=leaves("a1", "a2", "b1", "b2", "a3", "b3"),
    stores={
        "both": Store(entries=(("p", "q"),), members=(("a1", "a2"), ("b1", "b2"))),
        "third": Store(entries=(("r",),), members=(("a3",), ("b3",))),
    },
)


def test_a_member_is_remembered_and_copied_whole_or_not_at_all():
    copied, order = [], []
    calls = {s.name: lambda values, name=s.name: order.append(name) for s in PARTS.stages}
    made = Interpreter(PARTS, calls, in_order(PARTS, {}, None), lambda *names: copied.append(names))

    def run(*wanted):
        order.clear()
        copied.clear()
        made.run(*wanted)
        return order, copied

    made.set("a", 1)
    made.set("b", 1)
    assert run("a1", "b1") == (["k", "a0", "a1", "b0", "b1"], []), "a2 is missing"
    assert run("a1", "b1") == ([], [])
    assert run("a2") == (["a0", "a2"], []), "inside of a member all runs again"
    assert run("a1", "a2") == ([], [])
    made.forget()
    assert run("a1", "a2") == (["a0", "a1", "a2"], [("a1", "p"), ("a2", "q")])
    made.set("b", 2)
    made.set("b", 1)
    made._afresh = frozenset()
    assert run("b2") == ([], [("p", "b1"), ("q", "b2")])
    assert run("b1") == ([], []), "it came along"
    made.set("a", 3)
    made.set("b", 3)
    found = run("a1", "a2", "a3", "b1", "b2", "b3")
    assert found[0] == ["a0", "a1", "a2", "a3"]
    assert found[1][:3] == [("a1", "b1"), ("a2", "b2"), ("a3", "b3")]


def test_what_never_changes_runs_before_what_others_copy():
    order = []
    calls = {s.name: lambda values, name=s.name: order.append(name) for s in PARTS.stages}
    made = Interpreter(PARTS, calls, in_order(PARTS, {}, None), lambda *names: order.append("copy"))
    made.set("a", 1)
    made.set("b", 1)
    made.run("a1", "a2", "b1", "b2", "a3")
    assert order == ["k", "a0", "a1", "a2", *["copy"] * 2, "a3", *["copy"] * 3]


def test_a_copy_that_fails_leaves_nothing_that_counts(twins):
    interpreter, copied = twins
    interpreter.set("a", 1)
    interpreter.set("b", 2)
    interpreter.run("z")

    def refuse(source, target):
        raise RuntimeError

    interpreter.set("a", 2)
    kept, interpreter._copy = interpreter._copy, refuse
    with pytest.raises(RuntimeError):
        interpreter.run("z")
    interpreter._copy = kept
    interpreter.run("z")
    assert copied[-1] == ("held", "x") and set(interpreter.last_run) == {"z"}
    interpreter._copy = refuse
    interpreter.set("b", 3)
    with pytest.raises(RuntimeError):  # when the result is entered, half over the one before
        interpreter.run("z")
    interpreter._copy = kept
    assert interpreter.stores["store"].entries == 0
    interpreter.set("a", 3)
    interpreter.run("z")
    assert set(interpreter.last_run) == {"u", "x", "z"}


ALTERNATING = Graph(
    inputs=vectors("a"),
    tensors={name: ROW for name in "uvwxyz"},
    stages=(
        Stage(name="first", function="f", inputs={"i": "a"}, outputs={"o": "u"}),
        Stage(name="left", engine="e", inputs={"i": "u"}, outputs={"o": "v"}),
        Stage(name="late", function="f", inputs={"i": "v"}, outputs={"o": "w"}),
        Stage(name="second", function="f", inputs={"i": "a"}, outputs={"o": "x"}),
        Stage(name="right", engine="e", inputs={"i": "x"}, outputs={"o": "y"}),
        Stage(name="joined", engine="e", inputs={"i": "v", "j": "y"}, outputs={"o": "z"}),
    ),
    outputs=leaves("w", "z"),
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
    interpreter = Interpreter(ALTERNATING, hosts, launch, None)
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
