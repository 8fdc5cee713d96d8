"""From a config to objects: what an experiment is made of, each made once and when it is first asked for.

With its neighbours in launch/setup this is where config keys become plain values; the commands are given an
`Experiment`, never a module or a bare config. What trains is imported when it is asked for: a server never does.
"""

import dataclasses
import functools

import jax
from ml_collections import ConfigDict

from data_pipelines.augmentation import Augmentation
from launch.setup import cache, initial, values
from launch.setup.datasets import Data, open_data
from world_model import encoders
from world_model.batch import ONE_FRAME, Layout
from world_model.encoders.weights import WeightsFile
from world_model.families import Family, Model, get_family
from world_model.families.base.inputs import Inputs

INPUT_KEYS = ("unconditional",)  # keys of config.evaluate that the family's inputs take, where it has them
EVALUATION_ONLY = ("every", "rollout_every", "windows", "batch_size", *INPUT_KEYS)  # not the sampler's
MACHINE_KEYS = ("branch_devices",)  # keys of config.evaluate that no export keeps: on what sampling runs
STATE_KEYS = ("trainable", "frozen_dtype", "ema_decay")  # keys of config.optimizer that it does not take
SHIFTS = ("shift", "action_shift")  # keys of config.noise that the sampler shares with training


@dataclasses.dataclass(frozen=True, eq=False)
class Experiment:
    """A config and the objects that it stands for. Raises ConfigError where its values cannot be meant. Making one
    with train.float32_products = "highest" makes JAX multiply float32 exactly in this process."""

    config: ConfigDict

    def __post_init__(self):
        values.check(self.config)
        if self.config.train.get("float32_products") == "highest":
            jax.config.update("jax_default_matmul_precision", "highest")

    @property
    def family(self) -> Family:
        """The model family. Raises FamilyError where none of that name is installed."""
        return get_family(self.config.model.family)

    @functools.cached_property
    def encoders(self) -> dict:
        """The frozen encoders by part, as far as the family has them; an absent image encoder is None."""
        c, model = self.config.encoders, self.config.model
        made = {"video": lambda: encoders.make_video_codec(
                    c.video, channels=model.latent_channels, chunk=c.chunk, tile=c.tile,
                    **self._from_file(c.video_weights)),
                "text": lambda: encoders.make_text_encoder(
                    c.text, text_length=model.text_length, text_dim=model.text_dim, tokenizer=c.tokenizer,
                    **self._from_file(c.text_weights)),
                "tokens": lambda: encoders.make_token_ids(
                    c.tokens, text_length=model.text_length, vocab_size=model.vocab_size, tokenizer=c.tokenizer),
                "image": lambda: encoders.make_image_encoder(
                    c.image, image_tokens=model.get("image_tokens", 0), image_dim=model.get("image_dim", 0),
                    **self._from_file(c.image_weights))}
        return {part: make() for part, make in made.items() if part in c}

    def _from_file(self, path: str) -> dict:
        """What encoders take whose weights are in files."""
        c = self.config.encoders
        return {"weights": WeightsFile(path, c.allow_pickle), "dtype": c.dtype}

    @functools.cached_property
    def layout(self) -> Layout:
        """How a window is cut. Raises ValueError where frames, blocks and actions do not divide."""
        codec = self.encoders.get("video")
        return Layout(**ONE_FRAME | self.config.layout.to_dict(), temporal_stride=codec.temporal_stride if codec else 1)

    @functools.cached_property
    def model(self) -> Model:
        """The family at the config's sizes."""
        c = self.config
        sizes = {key: value for key, value in c.model.items() if key != "family"}
        if codec := self.encoders.get("video"):
            sizes |= {f"latent_{side}": getattr(self.layout, side) // codec.spatial_stride
                      for side in ("height", "width")}
        return self.family.make_model(layout=self.layout, remat=c.train.remat, matmul=c.train.matmul, **sizes)

    @functools.cached_property
    def inputs(self) -> Inputs:
        """What turns batches into what the loss and the sampler take."""
        given = {name: self.config.evaluate[name] for name in INPUT_KEYS if name in self.config.evaluate}
        return self.family.inputs(self.model.spec, dict(self.config.get("noise", {})), **self.encoders, **given)

    @functools.cached_property
    def loss(self):
        """What training minimises, a `Loss` of families/base."""
        from world_model.families.base.student import StudentLoss

        make_loss = self.family.part("loss", "training")
        own = make_loss(self.model.module, **self.config.get("noise", {}), **self.config.get("loss", {}))
        student = self.config.get("distill")
        return StudentLoss(own.model, own, student.streams, student.levels) if student else own

    def loss_fn(self, params: dict, batch: dict, key: jax.Array, counts: dict, frozen: dict | None = None):
        """(loss, metrics) of a batch, for the train step; frozen: the encoders' arrays."""
        return self.loss(params, self.inputs.encode(frozen or {}, batch), key, counts)

    @functools.cached_property
    def optimizer(self):
        """The `Optimizer` over train.steps."""
        from world_model.training.optimizer import make_optimizer

        given = {key: value for key, value in self.config.optimizer.items() if key not in STATE_KEYS}
        return make_optimizer(steps=self.config.train.steps, **given)

    @functools.cached_property
    def augmentation(self) -> Augmentation:
        """What is done to training pictures. Raises ValueError where a number is out of range."""
        return Augmentation(crop=self.config.data.crop, **self.config.data.augment)

    def sampler_settings(self, **over) -> dict:
        """Settings of the family's sampler: config.evaluate's, with keys of it in `over` set otherwise.

        Raises ValueError on a key that the family's sampler does not have.
        """
        known = {name: value for name, value in self.config.evaluate.items() if name not in EVALUATION_ONLY}
        if unknown := sorted(over.keys() - known.keys()):
            raise ValueError(f"the sampler of family {self.family.name!r} has no setting {unknown[0]!r}; it has "
                             f"{sorted(known)}")
        settings = {name: _hashable(value) for name, value in (known | over).items()}
        if "solver_steps" in settings:
            settings["steps"] = settings.pop("solver_steps")
        noise = self.config.get("noise", {})
        return settings | {name: noise[name] for name in SHIFTS if name in noise}

    def sampler(self, **over):
        """The family's compiled sampler; see `sampler_settings`."""
        return self.model.sampler(**self.sampler_settings(**over))

    def data(self, *, statistics: dict | None = None) -> Data:
        """The mixture, opened. statistics: given, or read from data.statistics, or computed."""
        return open_data(self, statistics=statistics)

    def fit_encoders(self, data: Data) -> dict:
        """What a checkpoint keeps of the encoders: arrays fitted on training windows, fingerprints of files; those of
        train.init_from, where the run starts from it. Raises CheckpointError where these are others."""
        if data.cache:
            made = data.cache.encoders(self.inputs.encoders)
            return initial.kept_encoders(self, {part: functools.partial(dict, made[part]) for part in made})
        clips = functools.partial(data.clips, self.config.encoders.get("fit_clips", 0))
        return initial.kept_encoders(self, {part: functools.partial(encoder.init, clips)
                                            for part, encoder in self.inputs.encoders.items()})

    def load_encoders(self, kept: dict) -> dict:
        """The encoders' arrays, numpy, from what a checkpoint keeps. Raises WeightsError where a file is missing or not
        the one that was used before."""
        return {part: self.encoders[part].load(values) for part, values in kept.items()}

    def training_arrays(self, kept: dict) -> dict:
        """The encoders' arrays that the train step takes. A run from a cache needs few of them, or none. Raises
        CacheError where the encoders are not those of the cache."""
        cache.check_encoders(self, kept)
        if self.config.data.cache:
            kept = {part: kept[part] for part in self.inputs.needs_when_stored()}
        return self.load_encoders(kept)

    def with_seed(self, seed: int) -> "Experiment":
        """The experiment with another seed."""
        config = self.config.copy_and_resolve_references()
        config.seed = seed
        return dataclasses.replace(self, config=config)

    def fitted(self, devices=None) -> "Experiment":
        """The experiment with nothing left open for the devices (launch/setup/fit.py), and all of its parts made."""
        from launch.setup import fit

        _ = self.inputs, self.loss, self.optimizer, self.augmentation
        return Experiment(initial.with_teacher(fit.fit(self.config, Experiment, devices)))


def _hashable(value):
    """Lists, as JSON has them, as tuples."""
    return tuple(map(_hashable, value)) if isinstance(value, list | tuple) else value
