"""Messages as bytes: what openpi's own code writes is read, and what lies about itself is not."""

import msgpack
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from openpi_client import msgpack_numpy

from runtime.control.server.wire import DTYPES, Bounds, WireError, pack, unpack

BOUNDS = Bounds(num_bytes=10_000, num_values=100)

numbers = st.sampled_from(sorted(DTYPES)).flatmap(
    lambda dtype: arrays(dtype, st.lists(st.integers(0, 4), max_size=4).map(tuple))
)
plain = st.one_of(
    st.none(), st.booleans(), st.integers(-(2**63), 2**64 - 1), st.floats(), st.text(max_size=40)
)
messages = st.dictionaries(
    st.text(max_size=40), st.one_of(numbers, plain, st.lists(plain, max_size=5)), max_size=6
)


def same(one, other):
    if isinstance(one, np.ndarray):
        return one.dtype == other.dtype and np.array_equal(
            one, other, equal_nan=one.dtype.kind == "f"
        )
    if isinstance(one, list):
        return len(one) == len(other) and all(map(same, one, other))
    return type(one) is type(other) and (one == other or one != one and other != other)


def alike(one, other):
    return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)


@settings(max_examples=60, deadline=None)
@given(messages)
def test_what_openpi_packs_is_read_and_what_we_pack_openpi_reads(message):
    assert alike(unpack(msgpack_numpy.packb(message), BOUNDS), message)
    assert alike(msgpack_numpy.unpackb(pack(message)), message)


def test_scalars_of_numpy_are_numbers():
    message = {"a": np.float32(1.5), "b": np.bool_(True), "c": np.uint8(3)}
    assert unpack(msgpack_numpy.packb(message), BOUNDS) == {"a": 1.5, "b": True, "c": 3}
    assert unpack(pack(message), BOUNDS) == {"a": 1.5, "b": True, "c": 3}


def test_an_array_is_a_view_that_nobody_writes():
    read = unpack(pack({"a": np.arange(3)}), BOUNDS)["a"]
    with pytest.raises(ValueError, match="read-only"):
        read[0] = 1


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=60), st.binary(max_size=200))
def test_any_bytes_are_read_or_refused_and_nothing_else(start, end):
    for data in (start, b"\x82\xa1a" + start, b"\x81\xa1a" + end):
        try:
            read = unpack(data, BOUNDS)
        except WireError as error:
            assert str(error)
        else:
            assert all(isinstance(key, str) for key in read)


@settings(max_examples=60, deadline=None)
@given(messages, st.data())
def test_a_message_that_is_cut_or_longer_is_refused(message, data):
    whole = msgpack_numpy.packb(message)
    with pytest.raises(WireError):
        unpack(whole[: data.draw(st.integers(0, len(whole) - 1))], BOUNDS)
    with pytest.raises(WireError, match="goes on behind its end"):
        unpack(whole + b"\xc0", BOUNDS)


@pytest.mark.parametrize(
    "claim", [b"\xdd\xff\xff\xff\xff", b"\xdf\xff\xff\xff\xff", b"\xc6\xff\xff\xff\xff"]
)
def test_what_is_claimed_and_not_there_is_refused_before_msgspec_sees_it(claim, monkeypatch):
    monkeypatch.setattr("msgspec.msgpack.decode", lambda data: pytest.fail("decoded"))
    with pytest.raises(WireError, match="the message claims"):
        unpack(b"\x81\xa1a" + claim, BOUNDS)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "a message is a msgpack map"),
        (b"\x90", "a message is a msgpack map"),
        (b"\x81\x01\x01", "a key at byte 1 that is no name"),
        (b"\x81\xc4\x01a\x01", "names are texts"),
        (b"\x82\xa1a\x01\xa1a\x02", "has a key twice"),
        (b"\x81\xa1a\xd4\x00\x00", r"unknown type \(0xd4\) at byte 3"),
        (b"\x81\xa1a\xc1", r"unknown type \(0xc1\)"),
        (b"\x81\xa1a\xa1\xff", "no msgpack"),
        (msgpack.packb({"a": [[[1]]]}), None),
        (msgpack.packb({"a": [[[[1]]]]}), "nests deeper than 4"),
        (msgpack.packb({"a": [0] * 97}), None),
        (msgpack.packb({"a": [0] * 98}), "holds more than 100 values"),
        (msgpack.packb({"a": bytes(9_994)}), None),
        (msgpack.packb({"a": bytes(9_995)}), "has 10001 bytes, at most 10000 are taken"),
    ],
)  # fmt: skip
def test_bounds_hold_to_the_last_one(data, words):
    if words is None:
        assert unpack(data, BOUNDS).keys() == {"a"}
        return
    with pytest.raises(WireError, match=words):
        unpack(data, BOUNDS)


def test_what_is_no_number_is_not_sent():
    for value in (np.array(["a"]), np.array([1j]), np.array([None]), {1, 2}.__iter__()):
        with pytest.raises(NotImplementedError, match="not sent"):
            pack({"a": value})
