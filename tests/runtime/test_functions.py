"""Host functions by their definitions, on output arrays that hold the last tick's numbers."""

import math

import numpy as np
import pytest
import torch

from runtime.declarations import Input, Prompt, Tensor
from runtime.errors import BundleError
from runtime.functions.calls import check_call, make_call
from runtime.functions.function import Resources
from runtime.graph import Graph, Stage
from runtime.prompt import MASKED
from tests.graphs import leaves

TABLE_VD = np.arange(1, 21, dtype=np.float32).reshape(10, 2)
STATISTICS = {"min": [-2.0, 0.0], "max": [2.0, 8.0]}


IMAGE = {"min_pixels": 1, "max_pixels": 1 << 20, "patch_size": 2, "merge_size": 1}
SCALING = {"statistics": "test", "modes": ["min_max"] * 2, "units": ["m", "m"]}


def resources(table_VD=TABLE_VD):
    return Resources(tables={"words": table_VD}, statistics={"test": STATISTICS})


def make(name, params, **changes):
    return make_call(Stage(name="s", function=name, params=params), resources(**changes))


def run(name, params, values, port, shape, **changes):
    """The filled array of one output port."""
    out = np.full(shape, 7, np.float32)
    if name == "embed":
        params = {"table": "words", **params}
    make(name, params, **changes)(values, {port: out})
    return out


@pytest.mark.parametrize(
    ("params", "values"),
    [({"ids": [3, 0]}, {}), ({}, {"ids": (3, 0)})],
)
def test_embed_looks_up_its_constant_ids_or_those_of_the_tick_and_pads_with_zeros(params, values):
    rows = run("embed", params, values, "embeddings", (4, 2))
    assert rows.tolist() == [[7, 8], [1, 2], [0, 0], [0, 0]]


def test_embed_fills_every_row():
    assert run("embed", {}, {"ids": [1, 2]}, "embeddings", (2, 2)).tolist() == [[3, 4], [5, 6]]


def test_embed_widens_bfloat16_to_the_bit():
    numbers = torch.tensor([[1.5, -0.0], [3e38, 2.0**-133]], dtype=torch.bfloat16)
    table_VD = numbers.view(torch.int16).numpy().view(np.uint16)
    rows = run("embed", {}, {"ids": [1, 0]}, "embeddings", (2, 2), table_VD=table_VD)
    assert rows.tobytes() == numbers.flip(0).float().numpy().tobytes()


def test_rotary_lets_sections_take_turns_where_it_is_told_to():
    """Qwen3-VL's rule: time, height, width in turn, until height and width have theirs."""
    params = {"segments": [[2, 3]], "start": 5, "theta": 100.0, "sections": [3, 2, 1]}
    out = {name: np.full((6, 12), 7, np.float32) for name in ("cos", "sin")}
    make("rotary", params | {"interleaved": True})({}, out)
    axes, powers = [0, 1, 2, 0, 1, 0], [100.0 ** (-i / 6) for i in range(6)]
    for row, place in enumerate((5, 5 + r, 5 + c) for r in range(2) for c in range(3)):
        angles = [place[axis] * power for axis, power in zip(axes, powers, strict=True)] * 2
        assert out["cos"][row] == pytest.approx([math.cos(a) for a in angles], abs=2e-6)
        assert out["sin"][row] == pytest.approx([math.sin(a) for a in angles], abs=2e-6)


@pytest.mark.parametrize("start", [0, 5])
def test_rotary_turns_what_stands_behind_a_text_as_if_it_went_on(start):
    params = {"segments": [3], "start": start, "theta": 10.0, "sections": [2, 0, 0]}
    want = {port: np.full((9, 4), 7, np.float32) for port in ("cos", "sin")}
    out = {port: np.full((4, 4), 7, np.float32) for port in ("cos", "sin")}
    make("rotary", params)({"ids": (1, 2, 3, 4, 5, 6)}, want)  # a text of six goes on from two
    make("rotary", params | {"behind": 4})({"ids": (1, 2)}, out)
    for port, table in out.items():
        assert table.tobytes() == want[port][5:].tobytes()


def test_a_corner_holds_what_both_have_and_zeros_beyond():
    given = np.arange(6, dtype=np.float32).reshape(2, 3)
    assert run("corner", {}, {"of": given}, "value", (2, 2)).tolist() == [[0, 1], [3, 4]]
    wider = run("corner", {}, {"of": given}, "value", (1, 5))
    assert wider.tolist() == [[0, 1, 2, 0, 0]]
    assert run("corner", {}, {"of": given[1]}, "value", (4,)).tolist() == [3, 4, 5, 0]


def test_rotary_turns_text_on_and_spreads_images_behind_its_start():
    params = {"segments": [1, [2, 3]], "start": 4, "theta": 100.0, "sections": [1, 1, 2]}
    # Time, height and width by Qwen2.5-VL's rule: text counts on, an image stands at 5 and
    # spreads 2 rows and 3 columns, what follows goes on behind the longer side, at 8.
    image = [(5, 5 + row, 5 + column) for row in range(2) for column in range(3)]
    positions = [(4, 4, 4), *image, (8, 8, 8), (9, 9, 9)]
    axes, powers = [0, 1, 2, 2], [100.0 ** (-i / 4) for i in range(4)]
    out = {name: np.full((11, 8), 7, np.float32) for name in ("cos", "sin")}
    make("rotary", params)({"ids": (1, 2)}, out)
    for row, position in enumerate(positions):
        angles = [position[axis] * power for axis, power in zip(axes, powers, strict=True)] * 2
        # float32 angles below 16 are off by 1e-6 of a turn at most.
        assert out["cos"][row] == pytest.approx([math.cos(a) for a in angles], abs=2e-6)
        assert out["sin"][row] == pytest.approx([math.sin(a) for a in angles], abs=2e-6)
    assert (out["cos"][9:] == 1).all() and (out["sin"][9:] == 0).all()
    make("rotary", params)({}, out)
    assert (out["cos"][7:] == 1).all(), "without ids the segments are all"


@pytest.mark.parametrize("count", [0, 1, 2])
def test_rotary_leaves_out_pictures_that_are_not_there(count):
    """Two optional pairs of a mark and a picture: those behind `count` take no places."""
    params = {"segments": [2, 1, [2, 2], 1, [2, 2]], "start": 3, "theta": 50.0,
              "sections": [1, 1, 2]}  # fmt: skip
    there = {"segments": params["segments"][: 1 + 2 * count]}
    want, out = (
        {name: np.full((15, 8), 7, np.float32) for name in ("cos", "sin")} for _ in range(2)
    )
    values, num_there = {"ids": (4, 5)}, 2 + 5 * count
    make("rotary", params | there)(values, want)
    make("rotary", params | {"optional": 2})(values | {"count": np.float32([count])}, out)
    for name, at_rest in (("cos", 1), ("sin", 0)):
        assert out[name][:num_there].tobytes() == want[name][:num_there].tobytes()
        assert (out[name][num_there:12] == at_rest).all()
        text = want[name][num_there : num_there + 2]
        assert out[name][12:14].tobytes() == text.tobytes(), "the text stands where it would"
        assert (out[name][14:] == at_rest).all()


@pytest.mark.parametrize(("count", "absent"), [(0, 7), (1, 4), (2, 0)])
def test_mask_hides_pictures_that_are_not_there(count, absent):
    """3 and 4 optional tokens at the end of 9, and 2 of text: nobody sees the absent."""
    params, shape = {"num_past": 1, "num_new": 9}, (12, 14)
    values = {"ids": (4, 5), "count": np.float32([count])}
    full = run("mask", params, values, "mask", shape)
    part = run("mask", params | {"optional": [3, 4]}, values, "mask", shape)
    hidden = range(9 - absent, 9)
    for row in range(12):
        seen = {int(column) for column in np.flatnonzero(full[row] == 0)}
        if row not in hidden:
            seen -= {2 + column for column in hidden}
            assert set(np.flatnonzero(part[row] == 0)) == seen
        else:
            assert np.flatnonzero(part[row] == 0).tolist() == [2 + row], "itself, as padding does"


def test_mask_shows_what_came_before_and_lets_padding_see_itself():
    num_past, past_slots, num_new, num_ids, slots = 2, 3, 1, 2, 5
    params = {"num_past": num_past, "num_new": num_new}
    shape = (slots, past_slots + slots)
    seen = run("mask", params, {"ids": (5,) * num_ids}, "mask", shape) == 0
    for row in range(slots):
        real = row < num_new + num_ids
        want = {past_slots + row}
        if real:
            want |= {*range(num_past), *range(past_slots, past_slots + row + 1)}
        assert set(np.flatnonzero(seen[row])) == want
    alone = run("mask", params, {}, "mask", shape)
    assert np.flatnonzero(alone[1] == 0).tolist() == [past_slots + 1], "padding without ids"
    assert np.isfinite(np.float16(alone)).all() and (alone[alone != 0] < -1e4).all()


def test_mask_opens_rows_and_counts_a_text_to_the_past():
    """2 of 4 new tokens see all new ones; a text of 3 stands behind 1 of the past."""
    params = {"num_past": 1, "num_new": 4, "num_open": 2, "text_is_past": True}
    seen = run("mask", params, {"ids": (5, 6, 7)}, "mask", (5, 6 + 5)) == 0
    past, new = {0, 1, 2, 3}, [6, 7, 8, 9]
    want = [{*past, *new}, {*past, *new}, {*past, 6, 7, 8}, {*past, *new}, {10}]
    assert [set(np.flatnonzero(row).tolist()) for row in seen] == want
    without = run("mask", {**params, "num_open": 0}, {"ids": ()}, "mask", (5, 6 + 5)) == 0
    assert set(np.flatnonzero(without[0]).tolist()) == {0, 6}


def test_rotary_ends_where_it_is_told_to():
    """A text of 2 behind 3 tokens, up to position 9: positions 4 to 8."""
    params = {"segments": [3], "start": 0, "stop": 9, "theta": 100.0, "sections": [2, 0, 0]}
    out = {name: np.full((7, 4), 7, np.float32) for name in ("cos", "sin")}
    make("rotary", params)({"ids": (1, 2)}, out)
    for row in range(5):
        angles = [(4 + row) * power for power in (1, 0.1)] * 2
        assert out["cos"][row] == pytest.approx([math.cos(a) for a in angles], abs=2e-6)
        assert out["sin"][row] == pytest.approx([math.sin(a) for a in angles], abs=2e-6)
    assert (out["cos"][5:] == 1).all() and (out["sin"][5:] == 0).all()
    make("rotary", params)({}, out)
    assert out["cos"][0][0] == pytest.approx(math.cos(6), abs=2e-6)


def test_mask_shows_the_start_of_every_block_of_a_past():
    params, shape = {"num_past": [0, 2, 1], "num_new": 1}, (5, 9 + 5)
    seen = run("mask", params, {"ids": (5,)}, "mask", shape) == 0
    past = [np.flatnonzero(row[:9]).tolist() for row in seen]
    assert past == [[3, 4, 6], [3, 4, 6], [], [], []], "padding sees nothing of it"
    alone = run("mask", params | {"num_past": 0}, {"ids": (5,)}, "mask", shape)
    assert (seen[:, 9:] == (alone == 0)[:, 9:]).all()


def test_pooling_leaves_out_the_padding_of_every_call_of_a_prefix():
    params = {"num_spatial": 4, "num_prefix": [3, 5, 1], "num_suffix": 2}
    tokens = np.random.default_rng(0).standard_normal((4 + 4 * 5, 3), np.float32)
    weights = run("pooling", params, {"ids": (1,)}, "weights", (4, len(tokens)))
    true = [*range(4), *range(4, 7), *range(9, 14), 14, *range(19, 22)]
    pooled = torch.nn.functional.adaptive_avg_pool1d(torch.from_numpy(tokens[true].T), 4)
    np.testing.assert_allclose(weights @ tokens, pooled.T.numpy(), atol=1e-6)  # a sum of 5
    assert (weights[:, sorted(set(range(len(tokens))) - set(true))] == 0).all()


def test_pooling_averages_the_true_sequence_as_adaptive_pooling_does():
    num_spatial, num_prefix, num_suffix, num_ids, slots, bins = 4, 3, 2, 1, 5, 4
    params = {"num_spatial": num_spatial, "num_prefix": num_prefix, "num_suffix": num_suffix}
    values = {"ids": (1,) * num_ids}
    weights = run("pooling", params, values, "weights", (bins, num_spatial + 2 * slots))
    tokens = np.random.default_rng(0).standard_normal((num_spatial + 2 * slots, 3), np.float32)
    suffix = num_spatial + slots
    true = [*range(num_spatial + num_prefix), *range(suffix, suffix + num_suffix + num_ids)]
    pooled = torch.nn.functional.adaptive_avg_pool1d(torch.from_numpy(tokens[true].T), bins)
    np.testing.assert_allclose(weights @ tokens, pooled.T.numpy(), atol=1e-6)  # a sum of 4
    padding = sorted(set(range(len(tokens))) - set(true))
    assert (weights[:, padding] == 0).all()


@pytest.mark.parametrize(("ids", "last"), [((), 1), ((5, 6), 3)])
def test_padding_is_what_no_call_holds_and_a_text_belongs_to_the_last(ids, last):
    mask = run("padding", {"counts": [2, 1]}, {"ids": ids} if ids else {}, "mask", (8,))
    shown = [place in (0, 1) or 4 <= place < 4 + last for place in range(8)]
    assert (mask == 0).tolist() == shown
    assert (mask[~np.array(shown)] == MASKED).all()


def test_places_pick_the_rows_of_the_last_tokens_of_a_kind_in_order():
    """Three of four, behind two tokens of the call; an instruction may hold one too."""
    rows = run("places", {"id": 9, "num_new": 2}, {"ids": (9, 1, 9, 4, 9, 9, 3)}, "places", (3, 10))
    hidden = np.arange(20, dtype=np.float32).reshape(10, 2)
    assert np.array_equal(rows @ hidden, hidden[[4, 6, 7]])
    assert set(np.unique(rows)) == {0, 1}


def test_too_few_tokens_of_a_kind_are_counted():
    with pytest.raises(ValueError, match="1 tokens of id 9 among 3, 2 are wanted"):
        run("places", {"id": 9, "num_new": 0}, {"ids": (1, 9, 2)}, "places", (2, 4))


def test_constant_fills_the_leading_corner_and_zeros_the_rest():
    corner = run("constant", {"values": [[1, 2]]}, {}, "value", (2, 3))
    assert corner.tolist() == [[1, 2, 0], [0, 0, 0]]
    assert (run("constant", {"values": []}, {}, "value", (2, 3)) == 0).all()


def test_copy_copies():
    value = np.array([[1.0, 2.0]], np.float32)
    copied = run("copy", {}, {"value": value}, "value", (1, 2))
    assert copied.tolist() == value.tolist()


def test_copy_keeps_whole_numbers_whole():
    value, out = np.arange(256, dtype=np.uint8), np.zeros(256, np.uint8)
    make("copy", {})({"value": value}, {"value": out})
    assert out.tolist() == list(range(256))


def test_states_and_actions_are_mapped_each_its_own_way():
    state = run("normalize", SCALING, {"value": np.float32([2, 4])}, "value", (2,))
    assert state.tolist() == [1, 0]
    policy = {"value": np.float32([[1, 0], [-1, 0.5]])}
    actions = run("unnormalize", SCALING, policy, "value", (2, 2))
    assert actions.tolist() == [[2, 4], [-2, 6]]


def test_a_leftover_is_weights_and_actions_as_the_policy_scales_them():
    leftover = np.float32([[1, 2, 4], [0.25, -2, 0]])
    out = {"actions": np.full((2, 2), 7, np.float32), "weights": np.full((2, 1), 7, np.float32)}
    make("leftover", SCALING)({"leftover": leftover}, out)
    assert out["actions"].tolist() == [[1, 0], [-1, -1]]
    assert out["weights"].tolist() == [[1], [0.25]]


def test_what_is_committed_replaces_what_was_denoised_to_the_bit_and_the_rest_does_not():
    leftover = np.float32([[1, 0.1, 0.2], [0.99, 8, 8], [0, 8, 8]])
    denoised = np.float32([[3, 3], [4, 4], [5, 5]])
    kept = run("commit", {}, {"leftover": leftover, "denoised": denoised}, "actions", (3, 2))
    assert kept.tobytes() == np.float32([[0.1, 0.2], [4, 4], [5, 5]]).tobytes()
    assert denoised[0, 0] == 3


def test_the_medoid_is_chosen_and_how_far_it_is_comes_along():
    samples = np.float32([[[0, 0]], [[1, 4]], [[2, 8]]])  # in policy units -1, 0 and 1 apart by 1
    out = {"actions": np.full((1, 2), 7, np.float32), "spread": np.full(1, 7, np.float32)}
    make("medoid", SCALING)({"samples": samples}, out)
    assert out["actions"].tolist() == [[1, 4]]
    # By 0.5 in the first dimension of range 4, and by 1 in the second of range 8.
    assert out["spread"][0] == pytest.approx(math.sqrt((0.25 + 1) / 2))


def test_cosine_compares_the_two_images_and_not_one_with_itself():
    a, b = np.float32([[3, 0], [1, 0]]), np.float32([[0, 1], [2, 1]])
    value = run("cosine", {}, {"a": a, "b": b}, "value", (1,))
    assert value[0] == pytest.approx(math.sqrt(0.5), abs=1e-6)  # means (2, 0) and (1, 1)


def test_patches_are_those_of_the_image_at_the_exported_grid():
    image = np.zeros((4, 6, 3), np.uint8)
    image[:2, 2:4] = 255  # the second patch of the first row
    params = {"grid": [2, 3], "image": IMAGE}
    rows = run("patches", params, {"image": image}, "patches", (6, 24))
    dark, bright = rows[0], rows[1]
    assert not np.array_equal(dark, bright)
    assert all(np.array_equal(rows[i], dark) for i in (2, 3, 4, 5))
    both = run("patches", params, {"image": np.stack([image[::-1], image])}, "patches", (12, 24))
    assert np.array_equal(both[6:], rows), "a video's patches stand one picture after the other"
    assert not np.array_equal(both[:6], rows)


TEXT = Input(
    kind="text",
    source="operator",
    shape=(3,),
    dtype="int64",
    pace="event",
    prompt=Prompt(tokenizer="t", template="{instruction}", end_ids=()),
)
LEFTOVER = Input(kind="leftover", source="loop", shape=(4, 3), dtype="float32", pace="tick")
ROTARY = {"segments": [2, [2, 2]], "start": 0, "theta": 1e4, "sections": [1, 1]}


def check(name, params, inputs, outputs, text=True):
    """Check a call in a graph: shapes of what engines write, and of what the call writes."""
    ports = {port: f"in_{port}" for port in inputs} | ({"ids": "text"} if text else {})
    ports |= {"leftover": "leftover"} if name in ("leftover", "commit") else {}
    written = {f"in_{port}": tensor for port, tensor in inputs.items()}
    targets = {f"out_{port}": tensor for port, tensor in outputs.items()}
    call = Stage(
        name="call",
        function=name,
        params=params,
        inputs=ports,
        outputs={port: f"out_{port}" for port in outputs},
    )
    makers = [Stage(name=n, engine="net", outputs={"y": n}) for n in written]
    graph = Graph(
        inputs={"text": TEXT, "leftover": LEFTOVER},
        outputs=leaves(next(iter(targets))),
        tensors=written | targets,
        stages=(*makers, call),
    )
    check_call(call, graph)


def block(*shape, dtype="float32"):
    return Tensor(shape=shape, dtype=dtype)


CALLS = [
    # function, constants, tensors it reads, tensors it writes, whether it reads the text: a fit,
    # then the tensors of a misfit and what is said of it
    ("embed", {"table": "t"}, {}, {"embeddings": block(3, 2)}, True,
     {"embeddings": block(2, 2)}, "3 tokens do not fit 'embeddings'"),
    ("embed", {"table": "t", "ids": [1, 2]}, {}, {"embeddings": block(2, 2)}, False,
     {"embeddings": block(1, 2)}, "2 tokens do not fit 'embeddings'"),
    ("rotary", ROTARY, {}, {"cos": block(9, 4), "sin": block(9, 4)}, True,
     {"cos": block(8, 4), "sin": block(8, 4)}, "9 tokens do not fit 'cos'"),
    ("rotary", ROTARY, {}, {"cos": block(9, 4), "sin": block(9, 4)}, True,
     {"cos": block(9, 4), "sin": block(9, 2)}, r"'sin' is \[9, 2\], \[9, 4\] is wanted"),
    ("rotary", ROTARY, {}, {"cos": block(9, 4), "sin": block(9, 4)}, True,
     {"cos": block(9, 2), "sin": block(9, 4)}, r"'cos' is \[9, 2\], \[9, 4\] is wanted"),
    ("mask", {"num_past": 4, "num_new": 2}, {}, {"mask": block(5, 9)}, True,
     {"mask": block(4, 8)}, "5 tokens do not fit 'mask'"),
    ("mask", {"num_past": 4, "num_new": 2}, {}, {"mask": block(5, 9)}, True,
     {"mask": block(5, 8)}, "5 tokens do not fit 'mask'"),
    ("pooling", {"num_spatial": 2, "num_prefix": 4, "num_suffix": 2}, {},
     {"weights": block(3, 12)}, True, {"weights": block(3, 10)}, "5 tokens do not fit 'weights'"),
    ("pooling", {"num_spatial": 2, "num_prefix": 6, "num_suffix": 2}, {},
     {"weights": block(3, 14)}, True, {"weights": block(3, 12)}, "6 tokens do not fit 'weights'"),
    ("mask", {"num_past": [0, 4], "num_new": 2}, {}, {"mask": block(5, 13)}, True,
     {"mask": block(5, 11)}, "5 tokens do not fit 'mask'"),
    ("mask", {"num_past": 1, "num_new": 2, "text_is_past": True}, {}, {"mask": block(2, 6)}, True,
     {"mask": block(2, 5)}, "2 tokens do not fit 'mask'"),
    ("rotary", {**ROTARY, "segments": [6], "start": 0, "stop": 9}, {},
     {"cos": block(9, 4), "sin": block(9, 4)}, True,
     {"cos": block(8, 4), "sin": block(8, 4)}, "9 tokens do not fit 'cos'"),
    ("mask", {"num_past": [0, 2], "num_new": 2}, {}, {"mask": block(5, 9)}, True,
     {"mask": block(5, 10)}, r"mask \[5, 10\] does not show a past of 2 blocks alike"),
    ("pooling", {"num_spatial": 2, "num_prefix": [5, 1], "num_suffix": 2}, {},
     {"weights": block(3, 17)}, True, {"weights": block(3, 14)}, "5 tokens do not fit 'weights'"),
    ("pooling", {"num_spatial": 2, "num_prefix": [4, 1], "num_suffix": 2}, {},
     {"weights": block(3, 17)}, True,
     {"weights": block(3, 18)}, r"weights \[3, 18\] are not of 3 calls alike"),
    ("padding", {"counts": [2, 2]}, {}, {"mask": block(10)}, True,
     {"mask": block(8)}, "5 tokens do not fit 'mask'"),
    ("padding", {"counts": [4, 1]}, {}, {"mask": block(8)}, True,
     {"mask": block(6)}, "4 tokens do not fit 'mask'"),
    ("padding", {"counts": [2, 2]}, {}, {"mask": block(10)}, True,
     {"mask": block(11)}, r"mask \[11\] is not of 2 calls alike"),
    ("places", {"id": 1, "num_new": 2}, {}, {"places": block(3, 5)}, True,
     {"places": block(3, 4)}, "5 tokens do not fit 'places'"),
    ("constant", {"values": [[1, 2]]}, {}, {"value": block(1, 2)}, False,
     {"value": block(2, 1)}, r"values \[1, 2\] do not fit \[2, 1\]"),
    ("copy", {}, {"value": block(2, 2)}, {"value": block(2, 2)}, False,
     {"value": block(2, 2, dtype="int32")}, "is int32, not float32"),
    ("copy", {}, {"value": block(2, 2)}, {"value": block(2, 2)}, False,
     {"value": block(4, 1)}, r"'in_value' is \[2, 2\], 'out_value' \[4, 1\]"),
    ("copy", {}, {"value": block(2, 2, dtype="uint8")}, {"value": block(2, 2, dtype="uint8")},
     False, {"value": block(2, 2, dtype="int32")}, "is int32, not float32"),
    ("leftover", SCALING, {}, {"actions": block(4, 2), "weights": block(4, 1)}, False,
     {"actions": block(4, 3), "weights": block(4, 1)}, r"'actions' is \[4, 3\], \[4, 2\] is"),
    ("leftover", SCALING, {}, {"actions": block(4, 2), "weights": block(4, 1)}, False,
     {"actions": block(4, 2), "weights": block(4)}, r"'weights' is \[4\], \[4, 1\] is"),
    ("medoid", SCALING, {"samples": block(3, 4, 2)},
     {"actions": block(4, 2), "spread": block(1)}, False,
     {"actions": block(4, 3), "spread": block(1)}, r"'actions' is \[4, 3\], \[4, 2\] is"),
    ("medoid", SCALING, {"samples": block(3, 4, 2)},
     {"actions": block(4, 2), "spread": block(1)}, False,
     {"actions": block(4, 2), "spread": block(2)}, r"'spread' is \[2\], \[1\] is"),
    ("commit", {}, {"denoised": block(4, 2)}, {"actions": block(4, 2)}, False,
     {"actions": block(4, 3)}, r"'actions' is \[4, 3\], \[4, 2\] is"),
    ("rotary", ROTARY | {"behind": 3}, {}, {"cos": block(3, 4), "sin": block(3, 4)}, True,
     {"cos": block(4, 4), "sin": block(3, 4)}, r"'cos' is \[4, 4\], \[3, 4\] is wanted"),
    ("corner", {}, {"of": block(4, 2)}, {"value": block(3, 5)}, False,
     {"value": block(8)}, r"'value' is \[8\], \[4, 2\] is wanted"),
    ("normalize", SCALING, {"value": block(3, 2, dtype="uint8")}, {"value": block(3, 2)}, False,
     {"value": block(3, 2, dtype="uint8")}, "is uint8, not float32"),
    ("normalize", SCALING, {"value": block(3, 2)}, {"value": block(3, 2)}, False,
     {"value": block(2, 3)}, r"'in_value' is \[3, 2\], 'out_value' \[2, 3\]|2 modes and 2 units"),
    ("cosine", {}, {"a": block(3, 2), "b": block(5, 2)}, {"value": block(1)}, False,
     {"value": block(2)}, r"'value' is \[2\], \[1\] is wanted"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "params", "inputs", "fits", "text", "misfit", "words"), CALLS)
def test_a_call_is_checked_before_it_is_made(name, params, inputs, fits, text, misfit, words):
    check(name, params, inputs, fits, text)
    with pytest.raises(BundleError, match=f"stage 'call', host function '{name}': .*({words})"):
        check(name, params, inputs, misfit, text)


@pytest.mark.parametrize(
    ("name", "params", "inputs", "outputs", "words"),
    [
        (
            "copy",
            {},
            {"value": block(2, dtype="bfloat16")},
            {"value": block(2)},
            "which is bfloat1",
        ),
        (
            "normalize",
            SCALING,
            {"value": block(3)},
            {"value": block(3)},
            "2 modes and 2 units for 3",
        ),
        (
            "cosine",
            {},
            {"a": block(3, 2), "b": block(5, 3)},
            {"value": block(1)},
            "compares .3, 2.",
        ),
        *(
            (
                "rotary",
                ROTARY | {"sections": sections, "interleaved": True},
                {},
                {"cos": block(9, 2 * sum(sections)), "sin": block(9, 2 * sum(sections))},
                "cannot take turns",
            )
            for sections in ([2, 2], [1, 2, 1], [1, 1, 2], [1, 1, 1, 1])
        ),
        (
            "rotary",
            ROTARY | {"behind": -1},
            {},
            {"cos": block(9, 4), "sin": block(9, 4)},
            "-1 tokens behind the text",
        ),
        ("mask", {"num_past": [], "num_new": 2}, {}, {"mask": block(5, 9)}, "of 0 blocks alike"),
        (
            "mask",
            {"num_past": [1, 1], "num_new": 2, "text_is_past": True},
            {},
            {"mask": block(5, 9)},
            "a text behind a past of 2 blocks",
        ),
        (
            "mask",
            {"num_past": 1, "num_new": 2, "num_open": 3},
            {},
            {"mask": block(5, 9)},
            "3 of 2 tokens cannot see all of them",
        ),
        (
            "rotary",
            {**ROTARY, "start": 1, "stop": 20},
            {},
            {"cos": block(9, 4), "sin": block(9, 4)},
            "tokens from 1 on do not end at position 20",
        ),
        (
            "rotary",
            {**ROTARY, "segments": [4], "start": 0, "stop": 3},
            {},
            {"cos": block(9, 4), "sin": block(9, 4)},
            "do not end at position 3",
        ),
        (
            "rotary",
            {**ROTARY, "segments": [[2, 2]], "start": 0, "stop": 20},
            {},
            {"cos": block(9, 4), "sin": block(9, 4)},
            "not all text",
        ),
        ("constant", {"values": ["x"]}, {}, {"value": block(1)}, "no array of numbers"),
        ("constant", {"values": [1, [2]]}, {}, {"value": block(1)}, "no array of numbers"),
    ],
)
def test_what_no_tensor_could_mend_is_refused(name, params, inputs, outputs, words):
    with pytest.raises(BundleError, match=words):
        check(name, params, inputs, outputs, text=False)


def test_a_leftover_fits_its_scaling_and_what_was_denoised():
    three = {"statistics": "test", "modes": ["min_max"] * 3, "units": ["m"] * 3}
    written = {"actions": block(4, 2), "weights": block(4, 1)}
    with pytest.raises(BundleError, match="3 modes and 3 units for 2 numbers"):
        check("leftover", three, {}, written, text=False)
    with pytest.raises(BundleError, match=r"'denoised' is \[3, 2\], \[4, 2\] is wanted"):
        check("commit", {}, {"denoised": block(3, 2)}, {"actions": block(4, 2)}, text=False)


@pytest.mark.parametrize("shape", [(1, 4, 2), (4, 2)])
def test_a_medoid_needs_two_samples(shape):
    chosen = {"actions": block(4, 2), "spread": block(1)}
    with pytest.raises(BundleError, match=r"\[K, T, A\] is wanted, with K of 2 or more"):
        check("medoid", SCALING, {"samples": block(*shape)}, chosen, text=False)


def test_constant_ids_beside_a_text_are_refused():
    with pytest.raises(BundleError, match="constant ids beside a text"):
        check("embed", {"table": "t", "ids": [1]}, {}, {"embeddings": block(9, 2)})


@pytest.mark.parametrize("ids", [[-1], [0, 10]])
def test_ids_outside_of_the_table_are_refused_at_load(ids):
    with pytest.raises(ValueError, match=r"lie outside of table 'words' \[10\]"):
        make("embed", {"table": "words", "ids": ids})


def test_statistics_that_are_not_there_are_named():
    with pytest.raises(ValueError, match=r"no statistics 'gone', only \['test'\]"):
        make("normalize", {**SCALING, "statistics": "gone"})
