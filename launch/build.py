"""From a config to objects: the one place where config keys become plain values."""

import dataclasses
import functools
import json
from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from data_pipelines.augmentation import Augmentation
from data_pipelines.embodiments import get_embodiment
from data_pipelines.latent_cache import CacheError, LatentCache
from data_pipelines.loader import Loader
from data_pipelines.samples import Dataset, SampleMaker, index_windows
from data_pipelines.sources import make_source
from data_pipelines.statistics import load_statistics, mixture_statistics, save_statistics, statistics_hash
from data_pipelines.windows import split_episodes, take_share
from launch import latents, mixture
from world_model import checkpoint, encoders
from world_model.batch import Layout
from world_model.families import Family, make_family
from world_model.interop.encoder_weights import Source
from world_model.objective import Objective
from world_model.policy import Policy


def layout_of(config) -> Layout:
    """Raises ValueError where frames, blocks and actions do not divide."""
    return Layout(**config.layout)


def augmentation(config) -> Augmentation:
    """Raises ValueError where a number is out of range."""
    return Augmentation(crop=config.data.crop, **config.data.augment)


def _from_file(config, path: str) -> dict:
    """What encoders take whose weights are in files."""
    return {"weights": Source(path, config.encoders.allow_pickle), "dtype": config.encoders.dtype}


def video_codec(config) -> encoders.VideoCodec:
    """The codec by name; its arrays come from `frozen`."""
    c = config.encoders
    return encoders.make_video_codec(c.video, channels=config.model.latent_channels, chunk=c.chunk, tile=c.tile,
                                     **_from_file(config, c.video_weights))


def text_encoder(config) -> encoders.TextEncoder:
    """The text encoder by name."""
    return encoders.make_text_encoder(config.encoders.text, text_length=config.model.text_length,
                                      text_dim=config.model.text_dim, tokenizer=config.encoders.tokenizer,
                                      **_from_file(config, config.encoders.text_weights))


def image_encoder(config) -> encoders.ImageEncoder | None:
    """The image encoder by name; None where there is none, or its features come precomputed."""
    sizes = {name: config.model.get(name, 0) for name in ("image_tokens", "image_dim")}
    return encoders.make_image_encoder(config.encoders.image, **sizes,
                                       **_from_file(config, config.encoders.image_weights))


def model(config) -> Family:
    """The model family at the config's sizes."""
    layout, stride = layout_of(config), video_codec(config).spatial_stride
    sizes = {key: value for key, value in config.model.items() if key != "family"}
    return make_family(config.model.family, layout=layout, latent_height=layout.height // stride,
                       latent_width=layout.width // stride, remat=config.train.remat, matmul=config.train.matmul,
                       **sizes)


@dataclasses.dataclass(frozen=True)
class Data:
    """The mixture, split into training and held-out episodes, and its statistics."""

    config: ConfigDict
    training: tuple[Dataset, ...]
    heldout: tuple[Dataset, ...]
    statistics: dict[str, dict]
    cache: LatentCache | None = None  # where training batches come from instead of video

    @property
    def statistics_hash(self) -> str:
        """Of all datasets' statistics."""
        return statistics_hash(self.statistics)

    def loader(self, start_step: int = 0, process_index: int = 0, process_count: int = 1) -> Loader:
        """Training batches of one host from global batch `start_step` on."""
        c = self.config
        return self._loader(self.training, c.train.global_batch_size, workers=c.data.workers, start_step=start_step,
                            cache=self.cache, process_index=process_index, process_count=process_count,
                            augmentation=augmentation(c))

    @property
    def heldout_robots(self) -> tuple[Dataset, ...]:
        """Held-out episodes with actions. Raises ValueError where there are none."""
        found = tuple(d for d in self.heldout if d.embodiment.action)
        if not found:
            raise ValueError("no held-out episodes with actions: raise data.holdout or add an action-labelled dataset")
        return found

    @property
    def heldout_windows(self) -> int:
        """Different windows of `heldout_robots`."""
        return sum(len(index_windows(dataset, layout_of(self.config))) for dataset in self.heldout_robots)

    def heldout_batches(self, batch_size: int, windows: int) -> Iterator[dict]:
        """At least `windows` held-out windows with actions, in a fixed order. Raises ValueError without any."""
        with self._loader(self.heldout_robots, batch_size) as loader:
            for _ in range(-(-windows // batch_size)):
                yield next(loader)

    def clips(self, count: int) -> np.ndarray:
        """uint8 [count, T, H, W, 3]: training windows for fitting a codec."""
        with self._loader(self.training, count) as loader:
            return next(loader)["video"]

    def makers(self) -> list[SampleMaker]:
        """Cutters of the training windows, one per dataset."""
        c = self.config
        return [SampleMaker(dataset, i, layout_of(c), text_encoder(c).tokenize, action_dim=c.model.action_dim,
                            state_dim=c.model.state_dim, augmentation=augmentation(c).still)
                for i, dataset in enumerate(self.training)]

    def _loader(self, datasets, batch_size: int, **options) -> Loader:
        c = self.config
        options = {"augmentation": augmentation(c).still, **options}
        return Loader(datasets, layout_of(c), text_encoder(c).tokenize, seed=c.seed, global_batch_size=batch_size,
                      prefetch=c.data.prefetch, max_bad_fraction=c.data.max_bad_fraction,
                      action_dim=c.model.action_dim, state_dim=c.model.state_dim, **options)


def open_datasets(config, cache: LatentCache | None = None) -> list[tuple[Dataset, np.ndarray]]:
    """(dataset of the training episodes, held-out episodes) of every part of the mixture, without statistics."""
    parts, places, entries = [], {}, mixture.entries(config.data.datasets)
    for name, entry in entries.items():
        options = {key: value for key, value in entry.to_dict().items()
                   if key not in ("source", "embodiment", "weight", "window_stride", "share")}
        opened = functools.partial(make_source, entry.source, name, **options)
        source = cache.source(name, opened) if cache else opened()
        # a recording that two datasets read is on the same side in both
        first = places.setdefault((entry.source, entry.path, entry.get("split", "")), name)
        training, heldout = split_episodes(first, np.unique(source.kept()[:, 0]), config.data.holdout)
        training = take_share(first, training, entry.get("share", 1.0))
        dataset = Dataset(name, source, get_embodiment(entry.embodiment), episodes=training,
                          window_stride=entry.get("window_stride", 1))
        parts.append((dataset, heldout))
    if not parts:
        return []
    windows = {dataset.name: len(index_windows(dataset, layout_of(config))) for dataset, _ in parts}
    weights = mixture.weights(config.data.datasets, windows, config.data.size_exponent, _tokens(config, parts))
    return [(dataclasses.replace(dataset, weight=weights[dataset.name]), heldout) for dataset, heldout in parts]


def _tokens(config, parts: list[tuple[Dataset, np.ndarray]]) -> dict[str, float] | None:
    """{dataset: tokens of a window} where they are what is counted."""
    if config.data.unit not in ("windows", "tokens"):
        raise ValueError(f"data.unit = {config.data.unit!r}: expected windows or tokens")
    if config.data.unit == "windows":
        return None
    per_frame = model(config).spec.tokens_per_frame
    return {dataset.name: mixture.tokens_of(dataset, layout_of(config), per_frame) for dataset, _ in parts}


def data(config, workdir: Path | str, statistics: dict | None = None) -> Data:
    """Opens the mixture. Statistics: given, or read from data.statistics, or computed into the workdir."""
    cache = latents.open_cache(config, video_codec(config).spatial_stride)
    if cache and augmentation(config) != augmentation(config).still:
        raise CacheError(f"data.cache = {config.data.cache} holds one picture of each window: data.augment must be "
                         "off, or data.cache empty")
    parts = open_datasets(config, cache)
    found = statistics or _statistics(config, workdir, [dataset for dataset, _ in parts], cache)
    if missing := sorted({dataset.name for dataset, _ in parts} - found.keys()):
        raise ValueError(f"statistics lack dataset {missing[0]!r}; they have {sorted(found)}")
    known = [(dataclasses.replace(dataset, statistics=found[dataset.name]), heldout) for dataset, heldout in parts]
    return Data(config, tuple(d for d, _ in known),
                tuple(dataclasses.replace(d, episodes=heldout) for d, heldout in known if len(heldout)),
                {d.name: found[d.name] for d, _ in known}, cache)


def _statistics(config, workdir: Path | str, datasets: list[Dataset], cache: LatentCache | None) -> dict[str, dict]:
    given = load_statistics(config.data.statistics) if config.data.statistics else None
    if cache:
        if given and statistics_hash(given) != statistics_hash(cache.statistics()):
            raise CacheError(f"data.cache = {config.data.cache} was normalised by other statistics than those in "
                             f"data.statistics = {config.data.statistics}; leave that empty")
        return cache.statistics()
    if given:
        return given
    statistics = mixture_statistics(datasets, layout_of(config), config.data.statistics_per,
                                    max_bad_fraction=config.data.max_bad_fraction)
    if jax.process_index() == 0:
        save_statistics(statistics, f"{workdir}/statistics.json")
    return statistics


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
    family = model(config)
    arrays = dict(checkpoint.read_arrays(directory, step, lambda name: name.startswith(("params.", "ema."))))
    kind = lambda prefix: {name.removeprefix(prefix): jnp.asarray(value) for name, value in arrays.items()
                           if name.startswith(prefix)}
    frozen = checkpoint.read_frozen(directory, step)
    return Restored(config, step, family, kind("params.") | kind("ema."), make_objective(config, family, frozen),
                    meta["statistics"], Path(workdir), meta.get("base"), frozen)
