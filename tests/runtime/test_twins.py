"""Members of a store compute the same, each of one input, or the graph is refused."""

import msgspec
import numpy as np
import pytest
from msgspec.structs import replace

from runtime.backends.device_memory import host_roots, layout
from runtime.bundle import read_bundle
from runtime.declarations import ALIGNMENT, Input, Store, Tensor
from runtime.functions.remembered import fingerprint, same
from runtime.graph import Graph, GraphError, Stage
from runtime.inputs import History
from runtime.pages.show import describe
from tests.families import CAMERA, INPUTS, golden_of, toy_graph, with_store, write_bundle
from tests.graphs import leaves, vectors

ROW, WIDE = Tensor(shape=(64,)), Tensor(shape=(192,))
STORE = Store(entries=(("h0", "g0"), ("h1", "g1")), members=(("ax", "ay"), ("bx", "by")))


def chain(name, source, **changes):
    """source -> in -> mid -> x, y; the last reads a constant too."""
    stage = {
        f"{name}_in": Stage(
            name=f"{name}_in", function="copy", inputs={"value": source},
            outputs={"value": f"{name}i"}, params={"scale": 1},
        ),
        f"{name}_mid": Stage(
            name=f"{name}_mid", engine="mid", inputs={"x": f"{name}i"}, outputs={"y": f"{name}m"}
        ),
        f"{name}_end": Stage(
            name=f"{name}_end", engine="end", inputs={"x": f"{name}m", "c": "constant"},
            outputs={"y": f"{name}x", "z": f"{name}y"},
        ),
    }  # fmt: skip
    for part, fields in changes.items():
        stage[f"{name}_{part}"] = replace(stage[f"{name}_{part}"], **fields)
    return tuple(stage.values())


def make(*, a=None, b=None, more=(), tensors=None, store=STORE, outputs=("out",), inputs=None):
    return Graph(
        inputs=inputs or vectors("a", "b", "c", width=64),
        tensors={
            **dict.fromkeys(("constant", "ai", "am", "ay", "bi", "bm", "by", "out"), ROW),
            **dict.fromkeys(("h0", "g0", "h1", "g1"), ROW),
            "pair": WIDE,
            "ax": Tensor(shape=(64,), part_of=("pair", 0)),
            "bx": Tensor(shape=(64,), part_of=("pair", 64)),
            "cx": Tensor(shape=(64,), part_of=("pair", 128)),
            **(tensors or {}),
        },
        stages=(
            Stage(name="constant", function="f", outputs={"value": "constant"}),
            *(a or chain("a", "a")),
            *(b or chain("b", "b")),
            Stage(name="c", function="copy", inputs={"value": "c"}, outputs={"value": "cx"}),
            *more,
            Stage(
                name="out", engine="out", inputs={"p": "pair", "q": "ay", "r": "by"},
                outputs={"y": "out"},
            ),
        ),
        outputs=leaves(*outputs),
        stores={"store": store},
    )  # fmt: skip


def test_a_cone_is_what_a_member_needs_but_for_constants():
    first, second = make().cones["store"]
    assert (first.source, first.tensors, first.stages) == ("a", ("ax", "ay"), (1, 2, 3))
    assert (second.source, second.tensors, second.stages) == ("b", ("bx", "by"), (4, 5, 6))


def reader(of):
    """A stage beside the cones."""
    return Stage(name="more", engine="more", inputs={"x": of}, outputs={"y": "more"})


def writer(of):
    return Stage(name="more", function="copy", inputs={"value": "c"}, outputs={"value": of})


MORE = {"more": ROW}
OTHER_INPUT = {**vectors("a", "c", width=64), **vectors("b", width=65)}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"store": replace(STORE, entries=())}, "'store': it needs entries and members, and a t"),
        ({"store": replace(STORE, members=())}, "it needs entries and members"),
        ({"store": replace(STORE, members=(("ax", "ay"), ()))}, "it needs entries and members"),
        ({"store": replace(STORE, entries=(("h0", "h9"),))}, r"unknown tensors \['h9'\]"),
        (
            {"store": replace(STORE, entries=(("h0", "pair"),))},
            r"\['ax', 'ay'\] are not of the shapes and types of an entry",
        ),
        (
            {"tensors": {"by": Tensor(shape=(64,), dtype="float16")}},
            r"\['bx', 'by'\] are not of the shapes and types of an entry",
        ),
        ({"store": replace(STORE, members=(("ax",), ("bx",)))}, r"\['ax'\] are not of the shapes"),
        (
            {"store": Store(entries=(("h0",),), members=(("out",),))},
            r"\['out'\] depend on the inputs \['a', 'b', 'c'\], and not on one",
        ),
        (
            {"store": Store(entries=(("h0",),), members=(("constant",),))},
            r"\['constant'\] depend on the inputs \[\], and not on one",
        ),
        (
            {"more": (reader("am"),), "tensors": MORE},
            "'am', which 'more' reads, is written on the way to .'ax', 'ay'. by 'a_mid'",
        ),
        ({"outputs": ("out", "bm")}, "'bm', which 'outputs' reads, is written on the way"),
        (
            {"store": Store(entries=(("h0",),), members=(("ax",), ("bx",)))},
            "'ay', which 'out' reads, is written on the way to .'ax'. by 'a_end'",
        ),
        ({"b": chain("b", "b", end={"engine": "mid"})}, r"\['b_in', 'b_mid', 'b_end'\] do not"),
        ({"b": chain("b", "b", **{"in": {"function": "f"}})}, "do not compute what"),
        ({"b": chain("b", "b", **{"in": {"params": {"scale": 1.0}}})}, "do not compute what"),
        ({"b": chain("b", "b", end={"inputs": {"x": "bm", "c": "bi"}})}, "do not compute what"),
        ({"b": chain("b", "b", end={"inputs": {"x": "bm", "c": "bm"}})}, "do not compute what"),
        ({"b": chain("b", "b", end={"outputs": {"y": "by", "z": "bx"}})}, "do not compute what"),
        (
            {"a": chain("a", "a", end={"inputs": {"x": "ap", "c": "constant"}}),
             "b": chain("b", "b", end={"inputs": {"x": "bp", "c": "constant"}}),
             "tensors": {"am": Tensor(shape=(128,)), "ap": Tensor(shape=(64,), part_of=("am", 0)),
                         "bm": Tensor(shape=(128,)),
                         "bp": Tensor(shape=(64,), part_of=("bm", 64))}},
            "do not compute what",
        ),
        (
            {"b": (Stage(name="more", function="f", outputs={"value": "more"}),
                   *chain("b", "b", end={"inputs": {"x": "bm", "c": "more"}})), "tensors": MORE},
            "do not compute what",
        ),
        (
            {"tensors": {"pair": Tensor(shape=(256,)),
                         "am": Tensor(shape=(64,), part_of=("pair", 192))}},
            "'pair', which 'out' reads, is written on the way to .'ax', 'ay'. by 'a_mid'",
        ),
        ({"inputs": OTHER_INPUT}, "do not compute what"),
        (
            {"tensors": {"bx": Tensor(shape=(64,), part_of=("pair", 96)),
                         "cx": Tensor(shape=(32,), part_of=("pair", 64)),
                         "cy": Tensor(shape=(32,), part_of=("pair", 160))},
             "more": (writer("cy"),)},
            "do not compute what",
        ),
        ({"store": replace(STORE, members=(("ax", "ay"),) * 2)}, "share the stages .'a_end', 'a_"),
        ({"more": (writer("h1"),)}, "'h1' is an entry of a store and meets 'h1'"),
        ({"outputs": ("out", "g0")}, "'g0' is an entry of a store and meets 'g0'"),
        ({"store": replace(STORE, entries=(("h0", "h0"),))}, "'h0' is an entry of a store and me"),
        ({"more": (reader("h0"),), "tensors": MORE}, "'more' reads 'h0' before all of it is wri"),
    ],
)  # fmt: skip
def test_what_is_no_store_is_refused(changes, message):
    with pytest.raises(GraphError, match=message):
        make(**changes)


def test_entries_may_be_parts_and_members_may_be_read_with_their_neighbours():
    tensors = {f"h{i}": Tensor(shape=(64,), part_of=("all", 64 * i)) for i in range(2)}
    graph = make(tensors={"all": Tensor(shape=(128,)), **tensors})
    assert "all" in graph.roots and graph.dependencies["h0"] == frozenset()


def test_a_graph_without_a_store_is_written_as_ever():
    graph = toy_graph(INPUTS)
    raw = msgspec.json.decode(msgspec.json.encode(graph))
    assert raw.keys() == {"inputs", "outputs", "tensors", "stages"}
    assert not any("steps" in declared for declared in raw["inputs"].values())
    kept = make()
    assert msgspec.json.decode(msgspec.json.encode(kept), type=Graph) == kept


def test_show_says_what_a_store_takes_and_for_whom(tmp_path):
    inputs = {**INPUTS, "first": Input(
        kind="image", source="latch", of="camera", shape=(8, 8, 3), dtype="uint8", pace="episode"
    )}  # fmt: skip
    graph = with_store(toy_graph(inputs), 5, ("camera", "first"))
    text = describe(read_bundle(write_bundle(tmp_path / "toy", graph, golden_of(inputs))))
    assert "store averages: 5 results in 120 bytes, by the value of camera, first" in text
    (row,) = [line for line in text.splitlines() if line.startswith("average_0..4")]
    assert " ".join(row.split()).endswith("2x3 120 store averages nothing with a new result")
    plain = toy_graph(inputs)
    assert layout(graph)[1] - layout(plain)[1] == 5 * ALIGNMENT
    assert host_roots(graph) == host_roots(plain), "no twin on the host"


def test_a_history_is_as_long_as_the_longest_delay_and_holds_no_copies():
    delay = Input(
        kind="vector", source="delay", of="q", steps=3, shape=(1,), dtype="float32", pace="tick"
    )
    inputs = {"old": delay, "older": replace(delay, steps=5), "camera": CAMERA}
    history = History(inputs)
    values = [np.array([number], np.float32) for number in range(9)]
    for number, value in enumerate(values):
        history.keep({"q": value, "camera": None})
        assert dict(history.delayed()) == {
            "old": values[max(0, number - 3)], "older": values[max(0, number - 5)]
        }  # fmt: skip
        assert history.past.keys() == {"q"}
        assert len(history.past["q"]) == min(number + 1, 6)
    assert all(a is b for a, b in zip(history.past["q"], values[3:], strict=True))


def test_pictures_of_which_no_first_rows_differ_have_different_fingerprints():
    picture = np.random.default_rng(0).integers(0, 255, (480, 640, 3), dtype=np.uint8)
    picture[:60] = 0
    marks = set()
    for shift in range(8):
        other = picture.copy()
        other[60:] = np.roll(picture[60:], shift, axis=1)
        marks.add(fingerprint(other))
        assert fingerprint(np.asfortranarray(other)) == fingerprint(other)
        assert same(other, picture) == (shift == 0)
    assert len(marks) == 8
    assert fingerprint((1, 2)) == fingerprint((1, 2))
    assert fingerprint(np.zeros((0, 3))) == fingerprint(np.zeros((0, 3)))
