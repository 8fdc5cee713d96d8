"""Frozen parameters held in bfloat16: what training, going on and memory make of them, and adapters beside them."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from launch import checkpoint as checkpoint_command
from launch import train
from launch.setup import training, values
from launch.setup.initial import Initial
from tests import tiny_training as tiny
from world_model.parallel import sharding
from world_model.training import checkpoint_reader

TRAINED = ("blocks.q.kernel", "blocks.k.kernel")



@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A run of all weights, without an average."""
    workdir = tmp_path_factory.mktemp("base")
    c = tiny.config(steps=2)
    c.optimizer.ema_decay = 0.0
    assert train.train(tiny.Experiment(c), workdir)
    return workdir


def config_from(workdir, dtype="bfloat16"):
    c = tiny.config(steps=4, every=2)
    c.train.init_from = str(workdir)
    c.optimizer.update(trainable=r"^blocks\.(q|k)\.", frozen_dtype=dtype, ema_decay=0.0)
    return c


@pytest.fixture(scope="module")
def run(base, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("run")
    assert train.train(tiny.Experiment(config_from(base)), workdir)
    return workdir


def params(workdir, step) -> dict[str, np.ndarray]:
    found = checkpoint_reader.read_arrays(workdir / "checkpoints", step, lambda name: name.startswith("params."))
    return {name.removeprefix("params."): value for name, value in found}


def losses(workdir):
    records = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    return [(record["loss"], record["grad_norm"]) for record in records]


def test_what_is_frozen_is_the_rounded_base_and_stays(base, run):
    before, after = params(base, 2), params(run, 4)
    assert before.keys() == after.keys()
    for name, x in before.items():
        if name in TRAINED:
            assert after[name].dtype == np.float32 and (after[name] != x).any(), name
        else:
            np.testing.assert_array_equal(after[name], x.astype(jnp.bfloat16), err_msg=name)


def test_training_is_that_of_the_same_base_in_float32_bit_for_bit(run, tmp_path):
    """Both go on from weights that were held in bfloat16."""
    for dtype in ("bfloat16", "float32"):
        assert train.train(tiny.Experiment(config_from(run, dtype)), tmp_path / dtype)
    assert losses(tmp_path / "bfloat16") == losses(tmp_path / "float32") != losses(run)
    narrow, wide = (params(tmp_path / dtype, 4) for dtype in ("bfloat16", "float32"))
    assert sum(x.nbytes for x in wide.values()) - sum(x.nbytes for x in narrow.values()) == sum(
        2 * x.size for name, x in narrow.items() if name not in TRAINED)


def test_the_compiled_step_takes_less(base):
    def arguments(dtype):
        experiment = tiny.Experiment(config_from(base, dtype)).fitted()
        mesh = training.make_mesh(experiment.config)
        _, target = training.make_target(experiment, mesh)
        rows = tiny.make_batch(0, range(8))
        batch = {name: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding.batch_sharding(mesh))
                 for name, x in rows.items()}
        with jax.set_mesh(mesh):
            compiled = training.make_step(experiment, target).lower(target, batch).compile()
        return compiled.memory_analysis().argument_size_in_bytes

    assert arguments("bfloat16") < 0.85 * arguments("float32")


def test_a_resumed_run_is_the_same_bit_for_bit(base, run, tmp_path):
    shutil.copytree(run, tmp_path / "half")
    shutil.rmtree(tmp_path / "half/checkpoints/4")
    assert train.train(tiny.Experiment(config_from(base)), tmp_path / "half")
    assert checkpoint_command.diff(run, tmp_path / "half") == []


def test_it_starts_from_arrays_of_its_own_shape_alone(base, tmp_path, capsys):
    assert train.run(tiny.Experiment(config_from(base), width=64), tmp_path) == 1
    assert "does not fit: params.blocks.fc1.kernel is [2, 32, 64] in the checkpoint, [2, 64, 64]" in capsys.readouterr().err


def test_adapters_on_weights_that_were_trained_further_name_no_published_base(base, tmp_path):
    shutil.copytree(base, tmp_path / "base")
    meta, published = tmp_path / "base/checkpoints/2/meta/metadata", {"format": "wan", "base_hash": "aa"}
    meta.write_text(json.dumps(json.loads(meta.read_text()) | {"base": published}))
    config = config_from(tmp_path / "base")
    assert Initial.from_config(config).base == published
    config.model.lora_rank = 4
    assert Initial.from_config(config).base is None
    (tmp_path / "base/checkpoints/2").rename(tmp_path / "base/checkpoints/0")  # as weights are imported
    assert Initial.from_config(config).base == published


def test_nothing_is_frozen_that_could_be_bfloat16(base):
    config = config_from(base)
    config.optimizer.trainable = ".*"
    with pytest.raises(values.ConfigError, match=r"frozen_dtype = bfloat16: optimizer.trainable = '\.\*' does not read"):
        tiny.Experiment(config)
