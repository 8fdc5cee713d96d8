"""From a config to what a run takes: with launch/setup/parts.py and launch/setup/datasets.py the one place where config
keys become plain values. The train loop is given this module, or a test's stand-in with the same functions."""

import dataclasses
import functools
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from launch.setup import fit, latents
from launch.setup.datasets import Data, data, open_datasets
from launch.setup.parts import augmentation, image_encoder, layout_of, model, text_encoder, video_codec
from world_model.families import Family
from world_model.families.base.loss import Objective
from world_model.families.base.policy import Policy
from world_model.training import checkpoint

__all__ = ["Data", "Restored", "arrays", "augmentation", "data", "frozen", "image_encoder", "layout_of", "losses",
           "make_objective", "model", "objective", "open_datasets", "restore", "rollout_settings", "text_encoder",
           "video_codec"]


def frozen(config, data: Data, workdir: Path) -> dict:
    """What a checkpoint keeps of the encoders: arrays fitted on training windows, fingerprints of files."""
    if data.cache:
        return data.cache.encoders()
    codec, text, image = video_codec(config), text_encoder(config), image_encoder(config)
    kept = {"video": codec.init(functools.partial(data.clips, config.encoders.fit_clips)), "text": text.init()}
    return kept | {"image": image.init()} if image else kept


def arrays(config, frozen: dict) -> dict:
    """The frozen encoders' arrays, numpy, from what `frozen` gave. Raises WeightsError where a file is missing or not
    the one that was used before."""
    made = {"video": video_codec, "text": text_encoder, "image": image_encoder}
    return {part: made[part](config).load(kept) for part, kept in frozen.items()}


def objective(config, family: Family, frozen: dict):
    """(loss_fn, count_fn, the encoders' arrays) for `train_parts.make_step`. A run from a cache needs at most those
    of the text encoder, for the empty prompt."""
    latents.check_encoders(config, video_codec(config).spatial_stride, frozen)
    if config.data.cache:
        frozen = {"text": frozen["text"]} if config.noise.get("text_dropout", 0) else {}
    return *losses(config, family), arrays(config, frozen)


def losses(config, family: Family):
    """(loss_fn, count_fn) without the encoders' arrays: they are the loss's last argument, for batches of video."""
    made = _objective(config, family, {"video": {}, "text": {}})
    return made.loss, made.count


def make_objective(config, family: Family, frozen: dict) -> Objective:
    """The training objective that holds its encoders' arrays."""
    return _objective(config, family, jax.tree.map(jnp.asarray, arrays(config, frozen)))


def _objective(config, family: Family, held: dict) -> Objective:
    return family.objective(video_codec(config), text_encoder(config), held, image_encoder=image_encoder(config),
                            **config.noise, **config.loss)


def rollout_settings(config) -> dict:
    """How to denoise: what a family's rollout takes beside the model, and `torch_rollout.Rollout` likewise."""
    windows = ("windows", "batch_size")
    settings = {name: value for name, value in config.evaluate.items() if name not in windows}
    shifts = {name: config.noise[name] for name in ("shift", "action_shift") if name in config.noise}
    return {"steps": settings.pop("solver_steps"), **settings, **shifts}


@dataclasses.dataclass(frozen=True)
class Restored:
    """A trained model with all that evaluation and export need, from its workdir alone."""

    config: ConfigDict
    step: int
    family: Family
    params: dict  # the average where there is one
    objective: Objective
    statistics: dict
    workdir: Path
    base: dict | None = None  # the published weights that training began with
    frozen: dict = dataclasses.field(default_factory=dict)  # what the checkpoint keeps of the encoders

    @functools.cached_property
    def data(self) -> Data:
        """The mixture, of video and under the checkpoint's own statistics. Opened when asked for."""
        config = self.config.copy_and_resolve_references()
        config.data.cache = ""
        return data(config, self.workdir, statistics=self.statistics)

    def policy(self, slots: int, channels: np.ndarray, batch_sizes: tuple[int, ...], **sampling) -> Policy:
        """What acts, with room for `slots` episodes of a robot that has those action channels, bool [action_dim];
        sampling: of the family's rollout, over the config's evaluate.*."""
        params = jax.tree.map(lambda p: p.astype(self.config.train.compute_dtype), self.params)
        return self.family.policy(self.objective, params, slots, channels, batch_sizes,
                                  **rollout_settings(self.config) | sampling)


def restore(workdir: Path | str, step: int | None = None) -> Restored:
    """The checkpoint of a step (default: the newest). Raises CheckpointError naming what does not fit."""
    directory = Path(workdir) / "checkpoints"
    step = checkpoint.locate(directory, step)
    meta = checkpoint.read_json(directory, step, "meta")
    config = ConfigDict(json.loads(json.dumps(meta["config"])))
    config.train.matmul = "plain"  # rounding is for the speed of training
    if not fit.runs_on(config.model.attention, jax.default_backend()):
        config.model.attention = "blockwise"  # trained elsewhere: weights do not depend on the kernel
    frozen = checkpoint.read_frozen(directory, step)
    try:
        family = model(config)
        objective = make_objective(config, family, frozen)
    except AttributeError as error:  # of a ConfigDict
        raise checkpoint.CheckpointError(f"{directory}, step {step}: its config is of another version of this code, "
                                         f"and lacks a key: {error}") from error
    arrays = dict(checkpoint.read_arrays(directory, step, lambda name: name.startswith(("params.", "ema."))))
    kind = lambda prefix: {name.removeprefix(prefix): jnp.asarray(value) for name, value in arrays.items()
                           if name.startswith(prefix)}
    return Restored(config, step, family, kind("params.") | kind("ema."), objective, meta["statistics"], Path(workdir),
                    meta.get("base"), frozen)
