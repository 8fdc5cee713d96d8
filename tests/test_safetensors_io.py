"""Sharded weights directories: what is written comes back, and what is damaged is refused with a reason."""

import json

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from world_model.weights import safetensors_io as io


def tensors():
    rng = np.random.default_rng(0)
    return {f"layer{i}.weight": rng.normal(size=(10, 10)).astype(np.float32) for i in range(5)}


@pytest.fixture
def directory(tmp_path):
    io.write(tmp_path, tensors().items(), shard_bytes=900)  # two tensors of 400 bytes a shard
    return tmp_path


def test_shards_by_size_and_reads_back(directory):
    assert sorted(p.name for p in directory.iterdir()) == [
        *(f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)), io.index_name()]
    index = json.loads((directory / io.index_name()).read_text())
    assert index["metadata"]["total_size"] == 2000 and index["metadata"]["hashes"].keys() == tensors().keys()
    weights = io.Weights(directory)
    assert set(weights) == set(index["weight_map"]) == set(tensors())
    for key, x in tensors().items():
        np.testing.assert_array_equal(weights[key], x)
        np.testing.assert_array_equal(load_file(directory / index["weight_map"][key])[key], x)
    weights.check({key: ((10, 10), "F32") for key in tensors()})


def test_writer_holds_one_shard(tmp_path):
    """When the stream is about to yield tensor i, everything but the shard being filled is on disk."""
    def stream():
        for i, item in enumerate(tensors().items()):
            assert len(list(tmp_path.iterdir())) >= max(0, (i - 1) // 2)
            yield item

    io.write(tmp_path, stream(), shard_bytes=900)


def test_non_contiguous_input_is_written_in_its_own_order(tmp_path):
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    io.write(tmp_path, [("t", x.T)])
    np.testing.assert_array_equal(io.Weights(tmp_path)["t"], x.T)


def test_truncated_shard(directory):
    path = directory / "model-00002-of-00003.safetensors"
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(io.WeightsError, match=r"model-00002-of-00003.safetensors: truncated"):
        io.Weights(directory)


def test_missing_shard(directory):
    (directory / "model-00003-of-00003.safetensors").unlink()
    with pytest.raises(io.WeightsError, match=r"00003-of-00003.*missing.*1 keys in it, first layer4"):
        io.Weights(directory)


def test_missing_or_broken_index(directory):
    (directory / io.index_name()).write_text("{}")
    with pytest.raises(io.WeightsError, match="weight_map"):
        io.Weights(directory)
    (directory / io.index_name()).unlink()
    with pytest.raises(io.WeightsError, match=r"index\.json: missing"):
        io.Weights(directory)


def test_index_and_shard_disagree(directory):
    path = directory / "model-00001-of-00003.safetensors"
    save_file({"layer0.weight": np.zeros(1, np.float32), "extra": np.zeros(1, np.float32)}, path)
    with pytest.raises(io.WeightsError, match=r"missing keys \['layer1.weight'\], unexpected.*extra"):
        io.Weights(directory)


def test_a_key_in_two_places(directory):
    index = directory / io.index_name()
    index.write_text(index.read_text().replace('"layer1.weight"', '"layer0.weight"'))
    with pytest.raises(io.WeightsError, match=r"index\.json is not JSON: layer0.weight is there twice"):
        io.Weights(directory)
    io.write(directory, tensors().items(), stem="model")
    save_file({"layer4.weight": np.zeros(1, np.float32)}, directory / "action_heads.safetensors")
    with pytest.raises(io.WeightsError, match=r"layer4.weight: in model.* and in action_heads"):
        io.Weights(directory, "model", "action_heads")


@pytest.mark.parametrize("change,message", [
    ({"layer9.weight": ((10, 10), "F32")}, r"missing keys \['layer9.weight'\]"),
    ({"layer1.weight": None}, r"unexpected keys \['layer1.weight'\]"),
    ({"layer1.weight": ((10, 11), "F32")}, r"00001.*layer1.weight: expected F32 \(10, 11\), found"),
    ({"layer4.weight": ((10, 10), "BF16")}, r"00003.*layer4.weight: expected BF16 .*found F32"),
])
def test_check_names_the_difference(directory, change, message):
    expected = {key: ((10, 10), "F32") for key in tensors()} | change
    with pytest.raises(io.WeightsError, match=message):
        io.Weights(directory).check({k: v for k, v in expected.items() if v})


def test_a_key_written_twice(tmp_path):
    x = np.zeros(1, np.float32)
    with pytest.raises(io.WeightsError, match="a: written twice"):
        io.write(tmp_path, [("a", x), ("a", x)])


def test_an_interrupted_write_leaves_nothing(tmp_path):
    def stream():
        yield "a", np.zeros(1, np.float32)
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"), io.atomic_directory(tmp_path / "out") as partial:
        io.write(partial, stream(), shard_bytes=1)
    assert list(tmp_path.iterdir()) == []


def test_commit_appears_whole_and_overwrites_nothing(tmp_path):
    out = tmp_path / "deep" / "out"
    with io.atomic_directory(out) as partial:
        io.write(partial, tensors().items())
        assert not out.exists()
    assert len(io.Weights(out)) == 5
    with pytest.raises(FileExistsError, match="not empty"), io.atomic_directory(out):
        pass


def test_two_writers_and_a_killed_one_do_not_meet(tmp_path, monkeypatch):
    """Process ids are 1 in every container."""
    monkeypatch.setattr("os.getpid", lambda: 1)
    (tmp_path / "out.partial-1").mkdir()  # of a killed writer
    with pytest.raises(OSError, match="not empty"), io.atomic_directory(tmp_path / "out") as first:
        io.write(first, [("first", np.zeros(3, np.float32))])
        with io.atomic_directory(tmp_path / "out") as second:
            io.write(second, tensors().items())
    assert set(io.Weights(tmp_path / "out")) == set(tensors())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "out.partial-1"]


def test_a_flipped_bit_is_no_other_number(tmp_path):
    io.write(tmp_path, tensors().items())
    (shard,) = tmp_path.glob("*.safetensors")
    damaged = bytearray(shard.read_bytes())
    damaged[-7] ^= 4
    shard.write_bytes(damaged)
    weights = io.Weights(tmp_path)
    assert weights["layer0.weight"].shape == (10, 10)
    with pytest.raises(io.WeightsError, match="layer4.weight is damaged: its hash is .* fetch or export it again"):
        weights["layer4.weight"]


def test_a_full_disk_is_one_sentence(small_disk):
    with pytest.raises(OSError, match=r"model-00003.safetensors cannot be written: .*No space left"), \
            io.atomic_directory(small_disk / "out") as partial:
        io.write(partial, ((str(i), np.zeros(100_000, np.float32)) for i in range(9)), shard_bytes=400_000)
    assert not list(small_disk.iterdir())


@pytest.mark.parametrize("name", ["../a.safetensors", "/etc/a.safetensors", "b/a.safetensors", "..", "", 3, None])
def test_an_index_names_files_beside_it_alone(tmp_path, name):
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": name}}))
    with pytest.raises(io.WeightsError, match=r"model.safetensors.index.json: weight_map: a = .*: expected a plain name of a file beside the index"):
        io.Weights(tmp_path)


def test_a_shard_may_be_a_link(tmp_path):
    with io.atomic_directory(tmp_path / "store") as partial:
        io.write(partial, tensors().items())
    (tmp_path / "model").mkdir()
    for file in (tmp_path / "store").iterdir():
        (tmp_path / "model" / file.name).symlink_to(file)
    assert len(io.Weights(tmp_path / "model")) == 5
