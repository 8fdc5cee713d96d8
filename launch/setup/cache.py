"""What a latent cache depends on, from an experiment: the same for who writes it and who trains from it."""

import hashlib

from data_pipelines.cache.format import CONTENTS, CacheError, arrays_hash
from data_pipelines.cache.reader import LatentCache
from data_pipelines.robots.embodiments import get_embodiment
from data_pipelines.storage import files
from launch.setup import mixture
from world_model import kinds
from world_model.batch import ONE_FRAME

_ELSEWHERE = ("weight", "path")  # a dataset's keys that change neither a window nor its number


def identity(experiment) -> dict:
    """JSON data: all that the stored numbers depend on, but the encoders' arrays and the statistics, which lie beside
    them."""
    config, datasets = experiment.config, {}
    for name, entry in mixture.entries(config.data.datasets).items():
        mixture.check_entry(name, entry)
        kept = {key: value for key, value in entry.to_dict().items() if key not in _ELSEWHERE}
        if keep := entry.get("keep"):  # what the file says counts, not where it lies
            kept["keep"] = hashlib.sha256(files.read_bytes(keep)).hexdigest()[:16]
        datasets[name] = kept | {"robot": str(get_embodiment(entry.embodiment))}
    row = {name: [list(shape), getattr(dtype, "__name__", str(dtype))]
           for name, (shape, dtype) in experiment.inputs.stored_fields().items()}
    encoders = {"dtype": "bfloat16"} | {  # caches name it even where no encoder of the family reads it
        name: config.encoders[name] for name in ("video", "text", "image", "dtype", "tile") if name in config.encoders}
    found = {"layout": ONE_FRAME | config.layout.to_dict(), "crop": config.data.crop, "encoders": encoders,
             "row": row, "holdout": config.data.holdout, "datasets": datasets, "code": CONTENTS}
    return kinds.plain(found)  # tuples become lists, as the manifest holds them


def open_cache(experiment) -> LatentCache | None:
    """The cache at data.cache, None without one. Raises CacheError where it was made for another config."""
    path = experiment.config.data.cache
    return LatentCache(path, identity(experiment), experiment.inputs.stored_fields()) if path else None


def check_encoders(experiment, kept: dict) -> None:
    """Raises CacheError where the run's encoders, perhaps a checkpoint's, are not those of data.cache."""
    cache = open_cache(experiment)
    if cache and (found := encoders_hash(kept)) != cache.manifest.get("encoders"):
        raise CacheError(f"data.cache = {cache.path} holds latents of encoders {cache.manifest.get('encoders')}, "
                         f"this run's have hash {found}: a checkpoint of other encoders cannot go on from this cache")


def encoders_hash(frozen: dict) -> str:
    """A hash of {"video": {name: array}, "text": {...}}."""
    return arrays_hash(flat_encoders(frozen))


def flat_encoders(frozen: dict) -> dict:
    """{"video": {name: array}} -> {"video.name": array}."""
    return {f"{part}.{name}": value for part, arrays in frozen.items() for name, value in arrays.items()}
