"""Large models: read when they are used, spread over the devices at hand, the same numbers as on one."""

import gc
import weakref

import jax
import numpy as np
import pytest

from launch import export
from launch.evaluation.evaluator import Evaluator
from launch.serving.servable import choose_robot
from launch.setup import restore as restoring
from tests import tiny_policy
from world_model.training import checkpoint, checkpoint_reader
from world_model.weights import conversion


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return tiny_policy.write(tmp_path_factory.mktemp("run"))


@pytest.fixture
def spread(run, monkeypatch):
    monkeypatch.setattr(restoring, "SPREAD_BYTES", 0)
    return restoring.restore(run)


def test_no_device_holds_a_whole_large_array(spread):
    assert dict(spread.mesh.shape) == {"data": 1, "fsdp": 8, "tensor": 1, "context": 1}
    for name, p in spread.compute_params.items():
        if name.startswith("blocks.") and name.endswith("kernel"):
            assert {shard.data.size for shard in p.addressable_shards} == {p.size // 8}, name


def test_arrays_are_read_one_at_a_time(spread, monkeypatch):
    """What was read before is gone when the next is."""
    read, held = checkpoint_reader._read, []

    def counted(path, flat):
        gc.collect()
        assert not [name for name, array in held if array() is not None]
        found = read(path, flat)
        held.extend((name, weakref.ref(x)) for name, x in found.items())
        return found

    monkeypatch.setattr(checkpoint_reader, "_read", counted)
    for x in list(spread.params.values())[:6]:
        assert np.asarray(x).shape == x.shape == (*x.shape[:1], *np.asarray(x[0]).shape)
    assert len(held) == 6
    damaged = next(iter(spread.params.values()))
    damaged._reader._hashes = dict.fromkeys(damaged._reader._hashes, "0")
    damaged._reader._last = None
    with pytest.raises(checkpoint.CheckpointError, match="is damaged"):
        np.asarray(damaged)


def test_a_policy_acts_as_on_one_device(run, spread):
    robot = choose_robot(spread, None, None)
    width = spread.experiment.model.spec.action_dim
    def chunk(restored):
        policy = restored.policy(1, np.arange(width) < 2, (1,))
        picture = np.random.default_rng(0).integers(0, 255, (1, 1, 32, 32, 3), np.uint8)
        ids, length = restored.experiment.inputs.tokenize("push")
        policy.start(np.array([0]), picture, ids[None], np.array([length]))
        nothing = np.zeros((1, robot.layout.actions_per_block, width), np.float32)
        return policy.act(np.array([0]), np.zeros((1, 64), np.float32), np.array([1]), jax.random.key(0)[None], nothing,
                          nothing > 0)
    one = restoring.Restored(**vars(spread) | {"mesh": None, "params": jax.tree.map(np.asarray, dict(spread.params))})
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-4), chunk(spread), chunk(one))


def test_an_export_is_written_and_compared_one_array_at_a_time(spread, tmp_path):
    found = export.export(spread, tmp_path / "out", dtype="bfloat16", by_tensor=True)
    assert (found["compared_with"], found["max"]) == ("parameters read back", 0.0) and 0 < max(found["cast"].values()) < 0.01
    back = conversion.read(spread.experiment.family.imports["dreamzero"].open(tmp_path / "out"), spread.params,
                           spread.experiment.model.spec)
    for name, x in spread.params.items():
        np.testing.assert_allclose(back[name], np.asarray(x), rtol=2**-8, err_msg=name)


def test_rows_are_spread_over_the_mesh(spread):
    assert Evaluator(spread.experiment, spread.mesh).batch_size() % 8 == 0
