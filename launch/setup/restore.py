"""A trained model with all that evaluation, serving and export need, from its workdir alone."""

import contextlib
import dataclasses
import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from configs.base import get_config
from data_pipelines.statistics.stored import STATISTICS
from launch.setup import mixture, values
from launch.setup.datasets import Data
from launch.setup.experiment import Experiment
from launch.setup.provenance import from_json
from world_model import kinds
from world_model.attention import runs_on
from world_model.encoders import place
from world_model.families import FamilyError, Model, get_family
from world_model.families.base.policy import Policy
from world_model.parallel import sharding
from world_model.training import checkpoint, checkpoint_reader
from world_model.training.checkpoint_reader import StoredArray

SPREAD_BYTES = 2**30  # float32 weights of so many bytes are read when they are used, and spread over the devices

_MAP = kinds.MAP
_FAMILY_CONFIG = kinds.fields({"model": kinds.fields({"family": kinds.text}, required=("family", "attention")),
                             "robots": kinds.map_of(_MAP)}, required=("model", "evaluate", "train"))


@dataclasses.dataclass(frozen=True)
class Restored:
    """A checkpoint's model; `params` are the average where there is one.

    Those of a large model are `checkpoint_reader.StoredArray`s, and what is computed with is spread over the devices.
    """

    experiment: Experiment
    step: int
    params: dict
    frozen: dict  # the encoders' arrays
    statistics: dict
    workdir: Path
    base: dict | None = None  # the published weights that training began with
    kept: dict = dataclasses.field(default_factory=dict)  # what the checkpoint keeps of the encoders
    weights: str = "raw"  # raw | average: which `params` are

    mesh: Mesh | None = None  # the arrays are spread over it; None: they are on one device

    @property
    def config(self) -> ConfigDict:
        """The config that was trained."""
        return self.experiment.config

    @functools.cached_property
    def data(self) -> Data:
        """The mixture, of video and under the checkpoint's own statistics, or its dataset that `of_dataset` names.
        Opened when asked for."""
        config = self.config.copy_and_resolve_references()
        config.data.cache = ""
        known = mixture.entries(config.data.datasets)
        if self.statistics.keys() < known.keys():
            config.data.datasets = ConfigDict({name: known[name] for name in self.statistics})
        return Experiment(config).data(statistics=self.statistics)

    @functools.cached_property
    def compute_params(self) -> dict:
        """The parameters in the dtype that was trained in; those of a large model are read one by one."""
        found, model, where = {}, self.experiment.model, param_shardings(self.experiment.model, self.mesh)
        for name, p in self.params.items():
            one = p.placed(where[name]) if isinstance(p, StoredArray) else p
            found |= model.cast({name: one}, self.config.train.compute_dtype)
        return found

    def policy(self, sessions: int, channels: np.ndarray, batch_sizes: tuple[int, ...], **sampling) -> Policy:
        """What acts, with room for that many sessions of a robot that has those action channels, bool [action_dim];
        sampling: keys of the config's `evaluate`, set otherwise."""
        experiment = self.experiment
        if self.mesh is not None and "branch_devices" in self.config.evaluate:
            sampling = {**sampling, "branch_devices": 1}  # every device has its share of both branches
        return experiment.family.policy(experiment.sampler(**sampling), experiment.inputs, self.frozen,
                                        self.compute_params, sessions, channels, batch_sizes)

    def of_dataset(self, name: str | None) -> "Restored":
        """Knows the robot of that dataset alone; None: of every one. Raises ValueError naming what there is."""
        if name is not None and name not in self.statistics:
            raise ValueError(f"--dataset={name}: the checkpoint was trained on {', '.join(sorted(self.statistics))}")
        return self if name is None else dataclasses.replace(self, statistics={name: self.statistics[name]})


def restore(workdir: Path | str, step: int | None = None) -> Restored:
    """The checkpoint of a step (default: the newest). Raises CheckpointError naming what does not fit."""
    directory = Path(workdir) / "checkpoints"
    step = checkpoint.locate(directory, step)
    meta = checkpoint.read_json(directory, step, "meta")
    kinds.check(meta["statistics"], STATISTICS, f"{directory}, step {step}: statistics")
    kept = checkpoint_reader.read_frozen(directory, step)
    try:
        experiment = Experiment(restored_config(meta["config"], f"{directory}, step {step}: config"))
        mesh = local_mesh(experiment.model)
        if mesh is not None:
            experiment.config.model.attention = "blockwise"  # it needs no rows for every device
            experiment = Experiment(experiment.config)
        frozen = experiment.load_encoders(kept)
        frozen = place(frozen, mesh) if mesh is not None else jax.tree.map(jnp.asarray, frozen)
        _ = experiment.model, experiment.inputs
    except FamilyError as error:
        raise checkpoint.CheckpointError(f"{directory}, step {step}: {error}") from error
    except AttributeError as error:  # a ConfigDict lacks a key
        raise checkpoint.CheckpointError(f"{directory}, step {step}: its config is of another version of this code, "
                                         f"and lacks a key: {error}") from error
    params = checkpoint_reader.stored_arrays(directory, step, ("params", "ema"))
    if not is_large(experiment.model):
        params = jax.tree.map(jnp.asarray, params)
    return Restored(experiment, step, params, frozen, meta["statistics"], Path(workdir), meta.get("base"), kept,
                    "average" if any(name.startswith("ema.") for name in meta["arrays"]) else "raw", mesh)


def is_large(model: Model) -> bool:
    """Whether a model's weights are too many to be whole in float32 without need."""
    return 4 * sum(p.size for p in model.shapes.values()) >= SPREAD_BYTES


def local_mesh(model: Model) -> Mesh | None:
    """All devices here, with as many shards of a large model as its widths allow; None where one device has it all."""
    count = len(jax.devices())
    if count == 1 or not is_large(model):
        return None
    for shards in range(count, 0, -1):
        if count % shards == 0:
            mesh = sharding.make_mesh(data=count // shards, fsdp=shards)
            with contextlib.suppress(ValueError):  # a width does not divide
                param_shardings(model, mesh)
                return mesh
    return None


def param_shardings(model: Model, mesh: Mesh | None) -> dict[str, jax.sharding.Sharding]:
    """Where each parameter lies. Raises ValueError where one does not divide over the mesh."""
    if mesh is None:
        return dict.fromkeys(model.shapes, jax.sharding.SingleDeviceSharding(jax.devices()[0]))
    return sharding.shardings(model.axes(), {name: p.shape for name, p in model.shapes.items()}, mesh)


def restored_config(saved: dict, where: str) -> ConfigDict:
    """A saved config as this code and machine run it: the sampler's keys that are newer than it at their defaults, the
    attention kernel one that runs here (weights do not depend on it), products plain (rounding is for the speed of
    training).

    where: it was saved. Raises FamilyError where the model's family is not installed, ValueError, which names `where`,
    if it is no config, or a robot of its own is not to be read.
    """
    kinds.check(saved, _FAMILY_CONFIG, where)
    family = saved["model"]["family"]
    kinds.check(saved, kinds.like(get_config(family).to_dict()), where)
    saved = kinds.plain(from_json(saved))
    saved["evaluate"] = {**get_family(family).config.get("evaluate", {}), **saved["evaluate"]}
    try:
        config = ConfigDict(saved)
        values.check(config)
    except ValueError as error:
        raise values.ConfigError(f"{where}: {error}") from error
    config.train.matmul = "plain"
    if not runs_on(config.model.attention, jax.default_backend()):
        config.model.attention = "blockwise"
    return config
