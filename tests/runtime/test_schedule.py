"""Stages that feed each other follow on one stream; what runs beside them has one of its own."""

from runtime.backends.schedule import plan
from runtime.declarations import Tensor
from runtime.graph import Graph, Stage
from tests.graphs import leaves, vectors

ROW = Tensor(shape=(64,))


def schedule(**reads):
    """Of engine stages by name, each of which writes a tensor of its name."""
    stages = (Stage(name="in", function="copy", inputs={"v": "source"}, outputs={"v": "x"}),)
    stages += tuple(
        Stage(
            name=name,
            engine="e",
            inputs={str(i): source for i, source in enumerate(sources)},
            outputs={"y": name},
        )
        for name, sources in reads.items()
    )
    tensors = {name: ROW for name in ("x", *reads)}
    return plan(
        Graph(
            inputs=vectors("source"),
            tensors=tensors,
            stages=stages,
            outputs=leaves(stages[-1].name),
        )
    )


def test_a_chain_stays_on_the_main_stream_and_waits_for_nothing():
    found = schedule(a=["x"], b=["a"], c=["b", "x"])
    assert found.stream == {"a": 0, "b": 0, "c": 0}
    assert found.after == {"a": (), "b": (), "c": ()}


def test_what_nothing_feeds_begins_on_the_main_stream():
    assert schedule(a=["x"], b=["x"], c=["x"]).stream == {"a": 0, "b": 0, "c": 0}


def test_a_branch_has_a_stream_of_its_own_and_is_joined_on_the_main_one():
    found = schedule(a=["x"], b=["a"], beside=["a"], more=["beside"], end=["b", "more"])
    assert found.stream == {"a": 0, "b": 0, "beside": 1, "more": 1, "end": 0}
    waits = {"a": (), "b": (), "beside": ("a",), "more": (), "end": ("more",)}
    assert found.after == waits


def test_two_streams_are_enough():
    found = schedule(a=["x"], b=["a"], c=["a"], d=["a"], e=["a"])
    assert set(found.stream.values()) == {0, 1}
    assert found.after["e"] == ("a",)


def test_neighbours_in_memory_do_not_wait_for_each_other():
    """The last writer's part ends where what is read begins, or the other way round."""
    tensors = {"x": ROW, "pair": Tensor(shape=(128,)), "y": ROW}
    tensors["left"] = Tensor(shape=(64,), part_of=("pair", 0))
    tensors["right"] = Tensor(shape=(64,), part_of=("pair", 64))
    for read, written_last in (("left", "right"), ("right", "left")):
        stages = (
            Stage(name="in", function="copy", inputs={"v": "source"}, outputs={"v": "x"}),
            Stage(name="first", engine="e", inputs={"x": "x"}, outputs={"y": read}),
            Stage(name="last", engine="e", inputs={"x": "x"}, outputs={"y": written_last}),
            Stage(name="reader", engine="e", inputs={"x": read}, outputs={"y": "y"}),
        )
        found = plan(
            Graph(inputs=vectors("source"), tensors=tensors, stages=stages, outputs=leaves("y"))
        )
        assert found.stream["reader"] == 1
        assert found.after["reader"] == ("first",)
