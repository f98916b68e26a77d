"""A graph refuses what cannot run, and its dependencies follow memory."""

import dataclasses

import pytest

from runtime.graph import Graph, GraphError, Stage, Tensor

ROW = Tensor(shape=(4,))


def make(**changes):
    """anchor -> left half of `pair`, frame -> right half; `both` reads the pair."""
    fields = {
        "inputs": ("anchor", "frame"),
        "tensors": {
            "pair": Tensor(shape=(8,)),
            "left": Tensor(shape=(4,), part_of=("pair", 0)),
            "right": Tensor(shape=(4,), part_of=("pair", 4)),
            "first": Tensor(shape=(2,), part_of=("left", 0)),
            "out": ROW,
        },
        "stages": (
            Stage(name="a", function="copy", inputs={"value": "anchor"}, outputs={"value": "left"}),
            Stage(name="f", function="copy", inputs={"value": "frame"}, outputs={"value": "right"}),
            Stage(name="both", engine="net", inputs={"x": "pair"}, outputs={"y": "out"}),
        ),
        "outputs": ("out",),
    }
    return Graph(**{**fields, **changes})


def writers_of(outer, offset):
    """Another writer, of all of the pair, of parts of both halves, or of a part of the left one."""
    name, size = {("pair", 0): ("whole", 8), ("pair", 3): ("tail", 4)}.get(
        (outer, offset), ("inside", 2)
    )
    part = Tensor(shape=(size,), part_of=(outer, offset))
    again = Stage(
        name="again", function="copy", inputs={"value": "anchor"}, outputs={"value": name}
    )
    first, *rest = make().stages
    return {"tensors": {**make().tensors, name: part}, "stages": (first, again, *rest)}


def test_a_tensor_depends_on_whatever_writes_a_part_of_it():
    needs = make().dependencies
    assert needs["pair"] == {"anchor", "frame"}
    assert needs["left"] == needs["first"] == {"anchor"}
    assert needs["right"] == {"frame"}
    assert needs["out"] == {"anchor", "frame"}


def test_a_part_that_straddles_two_writers_depends_on_both():
    tensors = {**make().tensors, "middle": Tensor(shape=(4,), part_of=("pair", 2))}
    assert make(tensors=tensors).dependencies["middle"] == {"anchor", "frame"}


def test_a_leaf_needs_only_its_ancestors():
    side = Stage(name="side", function="copy", inputs={"value": "right"}, outputs={"value": "s"})
    graph = make(
        tensors={**make().tensors, "s": ROW},
        stages=(*make().stages, side),
        outputs=("out", "s"),
    )
    names = [graph.stages[i].name for i in graph.needed_for("s")]
    assert names == ["f", "side"]
    with pytest.raises(GraphError, match="'left' is no output of this graph"):
        graph.needed_for("left")


def test_bytes_kept_for_an_input_are_those_written_for_it_alone():
    assert make().kept_for("anchor", ("frame",)) == 16


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"stages": make().stages[1:]}, "'both' reads 'pair' before all of it is written"),
        ({"stages": make().stages[::-1]}, "'both' reads 'pair' before all of it is written"),
        ({"stages": (*make().stages, make().stages[0])}, r"used twice: \['a'\]"),
        (
            {"stages": (*make().stages, dataclasses.replace(make().stages[0], name="again"))},
            "'a' and 'again' both write 'left'",
        ),
        (writers_of("pair", 0), "'a' and 'again' both write 'whole'"),
        (writers_of("pair", 3), "'a' and 'again' both write 'tail'"),
        (writers_of("left", 1), "'a' and 'again' both write 'inside'"),
        ({"inputs": ("anchor",)}, "'f' reads unknown 'frame'"),
        ({"inputs": ("anchor", "frame", "out")}, r"an input and of a tensor: \['out'\]"),
        ({"outputs": ()}, "needs at least one output"),
        ({"outputs": ("gone",)}, "output 'gone' is no tensor"),
        (
            {"stages": (Stage(name="a", inputs={}, outputs={}),)},
            "must name an engine or a function",
        ),
        (
            {"stages": (Stage(name="a", engine="n", inputs={"x": "anchor"}, outputs={}),)},
            "engines read tensors",
        ),
        (
            {"stages": (Stage(name="a", function="copy", outputs={"value": "gone"}),)},
            "writes unknown tensor 'gone'",
        ),
    ],
)
def test_a_graph_that_cannot_run_is_refused(changes, message):
    with pytest.raises(GraphError, match=message):
        make(**changes)


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        (Tensor(shape=(4,), part_of=("pair", 6)), "does not lie inside 'pair'"),
        (Tensor(shape=(4,), part_of=("pair", -1)), "does not lie inside 'pair'"),
        (Tensor(shape=(4,), part_of=("left", 0), dtype="float16"), "does not lie inside 'left'"),
        (Tensor(shape=(4,), part_of=("gone", 0)), "part of 'gone', which cannot be"),
        (Tensor(shape=(4,), part_of=("t", 0)), "part of 't', which cannot be"),
        (Tensor(shape=()), r"has shape \[\]"),
        (Tensor(shape=(0,)), r"has shape \[0\]"),
        (Tensor(shape=(1,), dtype="float8"), "unknown dtype 'float8'"),
    ],
)
def test_a_tensor_that_cannot_be_is_refused(tensor, message):
    with pytest.raises(GraphError, match=message):
        make(tensors={**make().tensors, "t": tensor})
