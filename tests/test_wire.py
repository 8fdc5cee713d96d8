"""The wire form against openpi-client's own packer, and what it refuses."""

import time
import tracemalloc

import msgpack
import numpy as np
import pytest
from openpi_client import msgpack_numpy

from launch.serving import wire


def test_reads_what_the_public_client_writes_and_back():
    message = {"observation/image": np.arange(24, dtype=np.uint8).reshape(2, 4, 3), "prompt": "push",
               "observation/state": np.float32([1, 2]), "wide": np.array([1.5, -2]), "n": np.int64(7), "flag": True,
               "scalar": np.float32(0.5), "none": None, "nested": {"list": [1, "a"]}, "name": np.str_("x")}
    for found in (wire.unpack(msgpack_numpy.packb(message)),
                  msgpack_numpy.unpackb(wire.pack(message | {"name": "x"}))):
        assert found.keys() == message.keys()
        for key in ("observation/image", "observation/state", "wide"):
            np.testing.assert_array_equal(found[key], message[key])
            assert found[key].dtype == message[key].dtype
        assert found["n"] == 7 and found["scalar"] == 0.5 and found["nested"] == {"list": [1, "a"]}
        assert found["name"] == "x" and found["none"] is None


ARRAY = {b"__ndarray__": True, b"data": bytes(8), b"dtype": "<f4", b"shape": [2]}


@pytest.mark.parametrize("array,sentence", [
    (ARRAY | {b"dtype": "|O"}, "dtype '|O' are not accepted"),
    (ARRAY | {b"dtype": "V8"}, "dtype 'V8' are not accepted"),
    (ARRAY | {b"dtype": "O8,f4"}, "not accepted"),
    (ARRAY | {b"dtype": 5}, "dtype '5' are not accepted"),
    (ARRAY | {b"shape": [3]}, "needs 12 bytes of data, found 8 bytes"),
    (ARRAY | {b"shape": [-2]}, "list of at most 8 sizes"),
    (ARRAY | {b"shape": [2**40, 2**40]}, "bytes of data, found 8 bytes"),
    (ARRAY | {b"shape": [1] * 9 + [2]}, "list of at most 8 sizes"),
    (ARRAY | {b"shape": [True, 2]}, "list of at most 8 sizes"),
    (ARRAY | {b"shape": "2"}, "list of at most 8 sizes"),
    (ARRAY | {b"data": "text"}, "found str"),
    (ARRAY | {b"more": 1}, "an array on the wire has the keys"),
    ({b"__ndarray__": True}, "an array on the wire has the keys"),
    ({b"__npgeneric__": True, b"data": b"x", b"dtype": "<f4"}, "a numpy scalar holds bytes"),
    ({b"__npgeneric__": True, b"data": 300, b"dtype": "|u1"}, "cannot hold 300"),
])
def test_refuses_arrays_that_are_not_what_they_say(array, sentence):
    with pytest.raises(wire.WireError, match=sentence.replace("|", r"\|")):
        wire.unpack(msgpack.packb({"x": array}))


def test_refuses_what_is_not_a_message():
    good = wire.pack({"x": np.zeros(100, np.float32)})
    for data in (b"", good[:50], good + b"\x00", b"\xc1", b"\x91" * 5000, bytes(10), b"\x80\x80",
                 msgpack.packb({1.5: 2}), msgpack.packb({"x": msgpack.ExtType(5, b"abc")}), b"\xdd\xff\xff\xff\xff",
                 b"\xa2\xff\xfe"):
        with pytest.raises(wire.WireError):
            wire.unpack(data)
    with pytest.raises(TypeError, match="object"):
        wire.pack({"x": np.array([None])})


MANY = 2**24  # bytes, as --message_mb=16 would let through


@pytest.mark.parametrize("message, sentence", [
    (b"\xdd" + MANY.to_bytes(4, "big") + b"\x90" * MANY, r"16777216 exceeds max_array_len\(256\)"),
    (b"\xdf" + MANY.to_bytes(4, "big") + b"\x90" * MANY, r"16777216 exceeds max_map_len\(256\)"),
    (b"\xdc\x01\x00" + (b"\xdc\x01\x00" + b"\x90" * 256) * (MANY // 259), "more than 1024 maps and lists"),
    (b"\x91" * MANY, "StackError"), (b"\x81\xa1a" * (MANY // 3), "StackError"),
    (b"\x91" * 1020 + b"\x94" + b"\x90" * 8, "more than 1024 maps and lists"),
], ids=["one array", "one map", "arrays of arrays", "deep", "deep maps", "deep and wide"])
def test_a_message_costs_no_more_than_its_bytes(message, sentence):
    """Sixteen million empty arrays took 46 s and 1.2 GB; 100 ms and 50 MB are allowed."""
    tracemalloc.start()
    began = time.process_time()
    with pytest.raises(wire.WireError, match=sentence):
        wire.unpack(message)
    took, peak = time.process_time() - began, tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert took < 0.1 and peak < 50e6


def test_any_damage_to_a_message_is_read_or_refused():
    """Bytes of a real message overwritten at random: a value or a WireError, nothing else."""
    rng, good = np.random.default_rng(0), np.frombuffer(wire.pack({
        "observation/image": np.zeros((4, 4, 3), np.uint8), "observation/state": np.float32([1, 2]), "prompt": "p"}),
        np.uint8)
    refused = 0
    for _ in range(2000):
        bad = good.copy()
        bad[rng.integers(len(bad), size=rng.integers(1, 8))] = rng.integers(0, 256)
        try:
            wire.unpack(bad.tobytes())
        except wire.WireError:
            refused += 1
    assert 100 < refused < 2000
