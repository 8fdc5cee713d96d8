"""world_model/hashing.py: one hash whatever holds the array, another for every changed bit."""

import jax
import ml_dtypes
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from world_model import hashing
from world_model.parallel import sharding


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16, np.int32, np.uint8, bool])
def test_host_devices_and_pieces_agree(dtype, monkeypatch):
    monkeypatch.setattr(hashing, "CHUNK", 7)
    x = np.random.default_rng(0).integers(0, 100, (8, 5, 4)).astype(dtype)
    mesh = sharding.make_mesh(1, 4, 2, 1)
    spread = jax.device_put(x, NamedSharding(mesh, PartitionSpec("fsdp", None, "tensor")))
    (one,) = {hashing.hashes({"x": each})["x"] for each in (x, jax.device_put(x, jax.devices()[0]), spread)}
    pieces = np.sum([hashing.sums_of(x[i], i * x[i].size) for i in range(8)], axis=0, dtype=np.uint32)
    assert hashing.text(pieces) == one


def test_every_bit_and_every_place_counts():
    x = np.random.default_rng(1).normal(size=40).astype(np.float32)
    found = {hashing.hashes({"x": x})["x"], hashing.hashes({"x": x[::-1]})["x"], hashing.hashes({"x": x[:-1]})["x"]}
    for bit in range(x.nbytes * 8):
        flipped = np.frombuffer(x.tobytes(), np.uint8).copy()
        flipped[bit // 8] ^= 1 << bit % 8
        found.add(hashing.hashes({"x": flipped.view(np.float32)})["x"])
    assert len(found) == 3 + x.nbytes * 8


def test_the_hash_does_not_change_with_versions_of_this_code():
    assert hashing.hashes({"x": np.arange(5, dtype=np.float32)})["x"] == "5977e7d134f382c5"
