"""world_model/training/state.py: what the state holds and where it is born."""

import jax
import numpy as np
import pytest

from tests import tiny_training as tiny
from world_model.parallel import sharding
from world_model.training import checkpoint, state

EXPERIMENT = tiny.Experiment(tiny.config())
MODEL = EXPERIMENT.model


def make(trainable=".*", ema=False):
    return state.create(MODEL.init_params(jax.random.key(0)), EXPERIMENT.optimizer, seed=7,
                        trainable=trainable, ema=ema)


def target(mesh, **options):
    return state.abstract_state(lambda: make(**options), sharding.shardings(MODEL.axes(), MODEL.shapes(), mesh))


def test_the_same_values_are_born_on_every_mesh():
    found = [state.init_state(lambda: make(ema=True), target(mesh, ema=True))
             for mesh in (sharding.make_mesh(devices=jax.devices()[:1]), sharding.make_mesh(1, 4, 2, 1))]
    jax.tree.map(np.testing.assert_array_equal, *found)
    spread = found[1]["opt"]["mu"]["blocks.q.kernel"]
    assert spread.sharding.shard_shape(spread.shape) == (2, 8, 16)  # [2, 32, 32] over fsdp 4 x tensor 2


def test_only_the_trained_have_moments_and_an_average():
    found = jax.eval_shape(lambda: make(trainable=r"^blocks\.(q|k)", ema=True))
    trained = {"blocks.q.kernel", "blocks.k.kernel"}
    assert found["opt"]["mu"].keys() == found["opt"]["nu"].keys() == found["ema"].keys() == trained
    assert found["params"].keys() == MODEL.shapes().keys()
    with pytest.raises(ValueError, match=r"optimizer.trainable = 'lora' matches none of 11 parameters; the nearest is "):
        make(trainable="lora")


def test_the_average_starts_from_the_weights():
    found = make(ema=True)
    jax.tree.map(np.testing.assert_array_equal, found["ema"], found["params"])
    assert "ema" not in make()


def test_flat_names_go_there_and_back():
    found = make(ema=True)
    flat = checkpoint.flatten(found)
    assert {"params.head.kernel", "opt.mu.blocks.fc1.bias", "opt.count", "ema.embed.bias", "step", "key"} <= set(flat)
    assert jax.tree.structure(checkpoint.unflatten(flat, found)) == jax.tree.structure(found)
    assert checkpoint.unflatten(flat, found)["opt"]["nu"]["head.kernel"] is found["opt"]["nu"]["head.kernel"]
