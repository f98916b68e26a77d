"""A graph refuses what cannot run, and its dependencies follow memory."""

import numpy as np
import pytest
from msgspec.structs import replace

from runtime.declarations import Tensor
from runtime.graph import Graph, GraphError, Stage, part_name, whole_of
from tests.graphs import leaves, vectors

ROW = Tensor(shape=(4,))


def make(**changes):
    """anchor -> left half of `pair`, frame -> right half; `both` reads the pair."""
    fields = {
        "inputs": vectors("anchor", pace="episode") | vectors("frame"),
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
        "outputs": leaves("out"),
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
        outputs=leaves("out", "s"),
    )
    names = [graph.stages[i].name for i in graph.needed_for("s")]
    assert names == ["f", "side"]
    with pytest.raises(GraphError, match="'left' is no output of this graph"):
        graph.needed_for("left")


def test_bytes_kept_for_an_input_are_those_written_for_it_alone():
    assert make().kept_bytes("anchor") == 16


def test_what_two_inputs_of_one_pace_decide_about_is_kept_for_neither():
    graph = make(inputs=vectors("anchor", "frame", pace="event"))
    assert graph.kept_stages("anchor") == {"a"}
    faster = make(inputs=vectors("anchor", pace="episode") | vectors("frame", pace="event"))
    assert faster.kept_stages("frame") == {"f", "both"}
    assert [graph.pace(names) for names in ((), ("anchor", "frame"))] == ["load", "event"]
    assert faster.pace({"anchor", "frame"}) == "event" and faster.pace({"anchor"}) == "episode"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"stages": make().stages[1:]}, "'both' reads 'pair' before all of it is written"),
        ({"stages": make().stages[::-1]}, "'both' reads 'pair' before all of it is written"),
        ({"stages": (*make().stages, make().stages[0])}, r"used twice: \['a'\]"),
        (
            {"stages": (*make().stages, replace(make().stages[0], name="again"))},
            "'a' and 'again' both write 'left'",
        ),
        (writers_of("pair", 0), "'a' and 'again' both write 'whole'"),
        (writers_of("pair", 3), "'a' and 'again' both write 'tail'"),
        (writers_of("left", 1), "'a' and 'again' both write 'inside'"),
        ({"inputs": vectors("anchor")}, "'f' reads unknown 'frame'"),
        ({"inputs": vectors("anchor", "frame", "out")}, r"an input and of a tensor: \['out'\]"),
        ({"outputs": {}}, "needs at least one output"),
        ({"outputs": leaves("gone")}, "output 'gone' is no tensor"),
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
        (Tensor(shape=(2, 0)), r"has shape \[2, 0\]"),
        (Tensor(shape=(1,), dtype="float8"), "unknown dtype 'float8'"),
    ],
)
def test_a_tensor_that_cannot_be_is_refused(tensor, message):
    with pytest.raises(GraphError, match=message):
        make(tensors={**make().tensors, "t": tensor})


def test_two_writers_may_touch_and_may_not_overlap():
    def write(name, tensor):
        return Stage(name=name, function="copy", outputs={"value": tensor})

    def writing(offset):
        tensors = {**make().tensors, "next": Tensor(shape=(3,), part_of=("pair", offset))}
        stages = (write("left", "left"), write("next", "next"))
        return make(tensors=tensors, stages=stages, outputs=leaves("left"))

    assert [stage.name for stage in writing(4).writers("pair")] == ["left", "next"]
    for overlapping in (1, 2, 3):
        with pytest.raises(GraphError, match="'left' and 'next' both write 'next'"):
            writing(overlapping)


def test_a_part_as_large_as_its_tensor_is_read_when_its_last_element_is_written():
    whole = Tensor(shape=(8,), part_of=("pair", 0))
    short = Tensor(shape=(7,), part_of=("pair", 0))
    for tensor, fits in ((whole, True), (short, False)):
        tensors = {**make().tensors, "w": tensor}
        stages = (
            Stage(name="a", function="copy", outputs={"value": "w"}),
            Stage(name="b", engine="net", inputs={"x": "pair"}, outputs={"y": "out"}),
        )
        if fits:
            assert make(tensors=tensors, stages=stages).needed_for("out") == (0, 1)
        else:
            with pytest.raises(GraphError, match="'b' reads 'pair' before all of it is written"):
                make(tensors=tensors, stages=stages)


def elements(tensors, name):
    """Where a tensor's numbers lie: the outermost tensor, and which of its elements."""
    tensor = tensors[name]
    if tensor.part_of is None:
        return [(name, i) for i in range(tensor.size)]
    parent, start = tensor.part_of
    return elements(tensors, parent)[start : start + tensor.size]


def random_graph(seed):
    """Fields of a graph that may overlap, and read what nobody has written."""
    random = np.random.default_rng(seed)
    tensors, names = {}, []
    for n in range(7):
        side = int(random.integers(1, 5))
        if names and random.random() < 0.6:
            parent = str(random.choice(names))
            room = tensors[parent].size
            size = int(random.integers(1, room + 1))
            place = parent, int(random.integers(0, room - size + 1))
            dtype = tensors[parent].dtype
            tensors[f"t{n}"] = Tensor(shape=(size,), part_of=place, dtype=dtype)
        else:
            dtype = str(random.choice(["float32", "float16", "int64", "uint8"]))
            tensors[f"t{n}"] = Tensor(shape=(side, 2), dtype=dtype)
        names.append(f"t{n}")
    written, stages = set(), []
    for n in range(5):
        places = {name: set(elements(tensors, name)) for name in names}
        whole = [name for name in names if places[name] <= written]
        free = [name for name in names if not places[name] & written]
        careless = random.random() < 0.1
        target = str(random.choice(names if careless or not free else free))
        readable = names if careless else whole
        sources = [str(s) for s in random.choice(readable, 2)] if readable else []
        kind = {"engine": "net"} if n and random.random() < 0.5 else {"function": "copy"}
        if "function" in kind and random.random() < 0.8:
            sources = [str(random.choice(["anchor", "frame", "noise"])), *sources[1:]]
        ports = {f"p{i}": source for i, source in enumerate(sources)}
        stages.append(Stage(name=f"s{n}", inputs=ports, outputs={"y": target}, **kind))
        written |= places[target]
    outputs = leaves(*(s.outputs["y"] for s in stages))
    return {
        "inputs": vectors("anchor", pace="episode") | vectors("frame", "noise"),
        "tensors": tensors,
        "stages": tuple(stages),
        "outputs": outputs,
    }


class ElementByElement:
    """What a graph says of itself, found by walking through every element of its memory."""

    def __init__(self, fields):
        self.tensors, self.inputs = fields["tensors"], fields["inputs"]
        self.stages = {stage.name: stage for stage in fields["stages"]}
        self.writer = {}
        for stage in self.stages.values():
            for source in self.read_by(stage):
                if any(element not in self.writer for element in self.elements(source)):
                    raise GraphError
            for target in stage.outputs.values():
                for element in self.elements(target):
                    if self.writer.setdefault(element, stage.name) != stage.name:
                        raise GraphError

    def elements(self, name):
        return elements(self.tensors, name)

    def read_by(self, stage):
        return [source for source in stage.inputs.values() if source not in self.inputs]

    def writers(self, name):
        return {self.writer[e] for e in self.elements(name) if e in self.writer}

    def before(self, name):
        """A stage's ancestors and itself."""
        found = {name}
        for source in self.read_by(self.stages[name]):
            found.update(*(self.before(writer) for writer in self.writers(source)))
        return found

    def needs(self, name):
        sources = {s for a in self.before(name) for s in self.stages[a].inputs.values()}
        return sources & set(self.inputs)

    def phase(self, name):
        sources = self.read_by(self.stages[name])
        after = max((self.phase(w) for s in sources for w in self.writers(s)), default=0)
        wanted = 1 if self.stages[name].engine else 0
        return next(phase for phase in (after, after + 1) if phase % 2 == wanted)


def test_random_graphs_say_of_themselves_what_a_walk_through_their_memory_finds():
    num_refused = num_graphs = 0
    for seed in range(300):
        fields = random_graph(seed)
        try:
            known = ElementByElement(fields)
        except GraphError:
            num_refused += 1
            with pytest.raises(GraphError, match="both write|before all of it is written"):
                Graph(**fields)
            continue
        num_graphs += 1
        graph = Graph(**fields)
        order = list(known.stages)
        assert dict(zip(order, graph.phases, strict=True)) == {s: known.phase(s) for s in order}
        assert graph.roots == tuple(n for n, t in graph.tensors.items() if t.part_of is None)
        for name in graph.tensors:
            first, *_, last = [*known.elements(name)] * 2
            assert graph.extent(name) == (first[0], first[1], last[1] + 1)
            assert {stage.name for stage in graph.writers(name)} == known.writers(name)
            needs = {i for writer in known.writers(name) for i in known.needs(writer)}
            assert graph.dependencies[name] == needs
        for leaf in graph.outputs:
            needed = {a for writer in known.writers(leaf) for a in known.before(writer)}
            assert graph.needed_for(leaf) == tuple(i for i, s in enumerate(order) if s in needed)
        for name in order:
            assert graph.stage_dependencies[name] == known.needs(name)
        kept = [s for s in order if known.needs(s) == {"anchor"}]
        sizes = {"float32": 4, "float16": 2, "int64": 8, "uint8": 1}
        targets = [graph.tensors[known.stages[s].outputs["y"]] for s in kept]
        assert graph.kept_bytes("anchor") == sum(t.size * sizes[t.dtype] for t in targets)
        assert [t.num_bytes for t in targets] == [t.size * sizes[t.dtype] for t in targets]
    assert num_graphs >= 40 and num_refused >= 60


SOURCES = vectors("a", "b")


def chained(*stages, networks=None):
    """Of stages given as (name, what it reads): each writes a tensor of its own name, in capitals.

    A name in lower case that is read is an input, copied by a host function first.
    """
    made = [
        Stage(name=f"copy_of_{n}", function="copy", inputs={"value": n}, outputs={"value": f"{n}_"})
        for n in SOURCES
    ]
    made += [
        Stage(
            name=name,
            engine=(networks or {}).get(name, f"net_{name}"),
            inputs={str(i): f"{s}_" if s in SOURCES else s.upper() for i, s in enumerate(reads)},
            outputs={"y": name.upper()},
        )
        for name, *reads in stages
    ]
    names = [tensor for stage in made for tensor in stage.outputs.values()]
    return Graph(
        inputs=SOURCES,
        tensors=dict.fromkeys(names, ROW),
        stages=tuple(made),
        outputs=leaves(names[-1]),
    )


def test_numbered_stages_that_feed_each_other_are_one_row():
    graph = chained(("p_0", "a"), ("p_1", "p_0"), ("p_2", "p_1", "a"), ("end", "p_2"))
    assert [graph.rows[n] for n in ("p_0", "p_1", "p_2", "end")] == ["p", "p", "p", "end"]
    assert graph.rows["copy_of_a"] == "copy_of_a"


@pytest.mark.parametrize(
    ("why", "stages"),
    [
        ("they depend on other inputs", [("p_0", "a"), ("p_1", "p_0", "b")]),
        ("one does not feed the other", [("p_0", "a"), ("p_1", "a")]),
        ("the chain leaves and comes back", [("p_0", "a"), ("x", "p_0"), ("p_1", "p_0", "x")]),
        ("there is but one", [("p_0", "a"), ("end", "p_0")]),
        ("the row's name is a stage's", [("p", "a"), ("p_0", "p"), ("p_1", "p_0")]),
        ("the row's name is an input's", [("a_0", "a"), ("a_1", "a_0")]),
        ("the end is no number", [("p_x", "a"), ("p_y", "p_x")]),
    ],
)
def test_other_stages_have_rows_of_their_own(why, stages):
    graph = chained(*stages)
    assert all(name == row for name, row in graph.rows.items()), why


def test_what_a_chain_reads_beside_itself_does_not_break_it():
    """The suffix of a policy in parts: each part reads the keys of the prefix's."""
    graph = chained(
        ("p_0", "a"), ("p_1", "p_0"), ("s_0", "b", "p_0"), ("s_1", "s_0", "p_1"),
        networks={"p_0": "n_0", "s_0": "n_0", "p_1": "n_1", "s_1": "n_1"},
    )  # fmt: skip
    assert graph.rows["p_1"] == "p" and graph.rows["s_1"] == "s"
    assert graph.networks == {"n_0": "n", "n_1": "n"}


def test_only_engines_that_are_numbered_alike_are_one_network():
    stages = [("p_0", "a"), ("p_1", "p_0")]
    same = chained(*stages, networks=dict.fromkeys(("p_0", "p_1"), "step"))
    assert same.networks == {"step": "step"}
    other = chained(*stages, networks={"p_0": "n_0", "p_1": "m_1"})
    assert other.networks == {"n_0": "n_0", "m_1": "m_1"}
    taken = chained(*stages, ("end", "p_1"), networks={"p_0": "n_0", "p_1": "n_1", "end": "n"})
    assert taken.networks == {"n_0": "n_0", "n_1": "n_1", "n": "n"}


def test_parts_are_named_by_their_number_and_known_by_it():
    assert [part_name("net", i, 2) for i in range(2)] == ["net_0", "net_1"]
    assert part_name("net", 0, 1) == "net"
    assert [whole_of(n) for n in ("net_0", "net_12", "net", "net_a", "_3", "a_b_3")] == [
        "net", "net", "net", "net_a", "_3", "a_b",
    ]  # fmt: skip
