"""A trained model with all that evaluation, serving and export need, from its workdir alone."""

import dataclasses
import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from configs.base import get_config
from data_pipelines.statistics import STATISTICS
from launch.setup import fit, values
from launch.setup.datasets import Data
from launch.setup.experiment import Experiment
from launch.setup.provenance import from_json
from world_model import kinds
from world_model.families import FamilyError, get_family
from world_model.families.base.policy import Policy
from world_model.training import checkpoint

_MAP = kinds.MAP
_OF_A_FAMILY = kinds.fields({"model": kinds.fields({"family": kinds.text}, required=("family",)),
                             "robots": kinds.map_of(_MAP)}, required=("model", "evaluate", "train"))


@dataclasses.dataclass(frozen=True)
class Restored:
    """A checkpoint's model; `params` are the average where there is one."""

    experiment: Experiment
    step: int
    params: dict
    frozen: dict  # the encoders' arrays
    statistics: dict
    workdir: Path
    base: dict | None = None  # the published weights that training began with
    kept: dict = dataclasses.field(default_factory=dict)  # what the checkpoint keeps of the encoders
    weights: str = "raw"  # raw | average: which `params` are

    mesh: Mesh | None = None  # over which the arrays are spread; None: they are on one device

    @property
    def config(self) -> ConfigDict:
        """The config that was trained."""
        return self.experiment.config

    @functools.cached_property
    def data(self) -> Data:
        """The mixture, of video and under the checkpoint's own statistics. Opened when asked for."""
        config = self.config.copy_and_resolve_references()
        config.data.cache = ""
        return Experiment(config).data(statistics=self.statistics)

    @functools.cached_property
    def compute_params(self) -> dict:
        """The parameters in the dtype that was trained in."""
        return self.experiment.model.cast(self.params, self.config.train.compute_dtype)

    def policy(self, sessions: int, channels: np.ndarray, batch_sizes: tuple[int, ...], **sampling) -> Policy:
        """What acts, with room for that many sessions of a robot that has those action channels, bool [action_dim];
        sampling: keys of the config's `evaluate`, set otherwise."""
        experiment = self.experiment
        return experiment.family.policy(experiment.sampler(**sampling), experiment.inputs, self.frozen,
                                        self.compute_params, sessions, channels, batch_sizes)


def restore(workdir: Path | str, step: int | None = None) -> Restored:
    """The checkpoint of a step (default: the newest). Raises CheckpointError naming what does not fit."""
    directory = Path(workdir) / "checkpoints"
    step = checkpoint.locate(directory, step)
    meta = checkpoint.read_json(directory, step, "meta")
    kinds.check(meta["statistics"], STATISTICS, f"{directory}, step {step}: statistics")
    kept = checkpoint.read_frozen(directory, step)
    try:
        experiment = Experiment(readable(meta["config"], f"{directory}, step {step}: config"))
        frozen = jax.tree.map(jnp.asarray, experiment.load_encoders(kept))
        _ = experiment.model, experiment.inputs
    except FamilyError as error:
        raise checkpoint.CheckpointError(f"{directory}, step {step}: {error}") from error
    except AttributeError as error:  # of a ConfigDict
        raise checkpoint.CheckpointError(f"{directory}, step {step}: its config is of another version of this code, "
                                         f"and lacks a key: {error}") from error
    arrays = dict(checkpoint.read_arrays(directory, step, lambda name: name.startswith(("params.", "ema."))))
    params = {name.partition(".")[2]: jnp.asarray(arrays[name]) for kind in ("params.", "ema.")
              for name in arrays if name.startswith(kind)}
    return Restored(experiment, step, params, frozen, meta["statistics"], Path(workdir), meta.get("base"), kept,
                    "average" if any(name.startswith("ema.") for name in arrays) else "raw")


def readable(saved: dict, where: str) -> ConfigDict:
    """A saved config as this code and machine run it: the sampler's keys that are newer than it at their defaults, the
    attention kernel one that runs here (weights do not depend on it), products plain (rounding is for the speed of
    training).

    where: it was saved. Raises FamilyError where the model's family is not installed, ValueError, which names `where`,
    if it is no config, or a robot of its own is not to be read.
    """
    kinds.check(saved, _OF_A_FAMILY, where)
    family = saved["model"]["family"]
    kinds.check(saved, kinds.like(get_config(family).to_dict()), where)
    saved = kinds.plain(from_json(saved))
    saved["evaluate"] = {**get_family(family).config.get("evaluate", {}), **saved["evaluate"]}
    config = ConfigDict(saved)
    config.train.matmul = "plain"
    try:
        values.check(config)
    except values.ConfigError as error:
        raise values.ConfigError(f"{where}: {error}") from error
    if not fit.runs_on(config.model.attention, jax.default_backend()):
        config.model.attention = "blockwise"
    return config
