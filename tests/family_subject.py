"""A family under test: a tiny config, and what is made of it, each once; plug-ins that come and go."""

import contextlib
import dataclasses
import functools
import importlib
import sys
from pathlib import Path

import numpy as np
import pytest
from ml_collections import ConfigDict

from configs import base, lingbot_vla_4b
from launch import export, precompute, train
from launch.serving.engine import Engine
from launch.serving.servable import choose_robot
from launch.setup.experiment import Experiment
from launch.setup.restore import Restored, restore
from tests import lerobot_config, tiny_policy
from world_model import families
from world_model.families import get_family
from world_model.families.base.family import Family
from world_model.training import checkpoint_reader

ROOT = Path(__file__).parent.parent
TOY = ROOT / "tests/toy_family/src"
BATCH = 8  # a sample for each device


def look_again() -> None:
    """Forgets which plug-ins there are."""
    importlib.invalidate_caches()
    families._plug_ins.cache_clear()
    families.get_family.cache_clear()


@contextlib.contextmanager
def search_path(change):
    """The plug-ins of another sys.path, change(sys.path)."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "path", change(sys.path))
        look_again()
        yield
    look_again()


def installed(directory: Path):
    return search_path(lambda path: [str(directory), *path])


@contextlib.contextmanager
def uninstalled(name: str):
    with search_path(lambda path: [each for each in path if each != str(TOY)]), pytest.MonkeyPatch.context() as patch:
        patch.delitem(families.BUILT_IN, name, raising=False)
        yield


def tiny(name: str):
    """A config of the family at a size at which compiling is what takes time."""
    if name == "toy":
        c = base.get_config(name)
        c.model.update(dim=32, ffn_dim=64, num_heads=4, kv_heads=2, num_layers=2, patch=8)
        c.layout.update(height=16, width=16, actions_per_block=4)
    elif name == "lingbot_vla":
        c = lingbot_vla_4b.get_config("debug")
        c.model.views = 3
    else:
        c = tiny_policy.config(arm="debug" if name == "dreamzero" else "lingbot_va_debug")
        with c.unlocked():
            c.model.family = name
            for section, keys in get_family(name).config.items():
                c[section].update({key: value for key, value in keys.items() if key not in c[section]})
    c.model.update({"action_stream_dim": 32, "action_ffn_dim": 64} if name == "lingbot_va_mot" else {})
    c.model.text_length = 128
    c.data.datasets = ConfigDict({"discs": lerobot_config.get_config().data.datasets.discs})
    c.data.holdout = 0.3
    c.train.update(steps=2, global_batch_size=BATCH, remat="none", compute_dtype="float32", log_every=1)
    c.checkpoint.every, c.optimizer.ema_decay = 1, 0.0
    c.optimizer.update(warmup_fraction=0.0, learning_rate=1e-2)  # the first step moves
    c.evaluate.update(windows=2, batch_size=2)
    c.evaluate.update({key: 2 for key in ("solver_steps", "action_steps") if key in c.evaluate})
    return c


def random_batch(fields: dict) -> dict:
    """Rows of those fields; every step and dimension is real."""
    rng = np.random.default_rng(0)

    def values(shape, dtype):
        dtype, shape = np.dtype(dtype), (BATCH, *shape)
        if dtype.kind == "b":
            return np.ones(shape, dtype)
        return rng.integers(1, 8, shape).astype(dtype) if dtype.kind in "iu" else rng.normal(size=shape).astype(dtype)

    return {name: values(*field) for name, field in fields.items()} | {"sample_index": np.arange(BATCH, dtype=np.uint32)}


@dataclasses.dataclass
class Subject:
    """A family at a tiny size: what is made of it, each once."""

    name: str
    directory: Path

    @functools.cached_property
    def experiment(self) -> Experiment:
        """Trains from a latent cache that launch.precompute has written."""
        config = tiny(self.name)
        job = precompute.Precompute(config, str(self.directory / "cache"), shard_bytes=2**20, batch=BATCH, worker=0,
                                    workers=1)
        assert job.run(print)
        return precompute.with_cache(config, str(self.directory / "cache"))

    @property
    def family(self) -> Family:
        return get_family(self.name)

    @functools.cached_property
    def run(self) -> Path:
        """The workdir of launch.train, on all eight devices."""
        train.train(self.experiment, self.directory / "run")
        return self.directory / "run"

    @functools.cached_property
    def restored(self) -> Restored:
        """The run's checkpoint, with weights under which every output depends on every input."""
        found = restore(self.run)
        return dataclasses.replace(found, params=tiny_policy._weights(found.experiment.model.shapes,
                                                                      np.random.default_rng(0)))

    @functools.cached_property
    def engine(self) -> Engine:
        """Acts with it, in JAX."""
        return engine_of(self.restored)

    @functools.cached_property
    def exported(self) -> tuple[Path, dict]:
        """(directory, report) of launch.export."""
        return self.directory / "export", export.export(self.restored, self.directory / "export")


def engine_of(model) -> Engine:
    return Engine(model, choose_robot(model, None, None), sessions=2, batch_sizes=(1,))


def parameters(workdir: Path, step: int) -> dict[str, np.ndarray]:
    found = checkpoint_reader.read_arrays(workdir / "checkpoints", step, lambda name: name.startswith("params."))
    return {name.removeprefix("params."): x for name, x in found}
