"""What a latent cache depends on, from a config: the same for who writes it and who trains from it."""

import hashlib
import json

from data_pipelines.cache.reader import CONTENTS, CacheError, LatentCache, arrays_hash
from data_pipelines.robots.embodiments import get_embodiment
from data_pipelines.storage import files
from launch.setup import mixture
from world_model.batch import Layout, encoded_batch_spec

_ELSEWHERE = ("weight", "path")  # of a dataset: they change neither a window nor its number


def encoded_spec(config, stride: int) -> dict[str, tuple]:
    """`encoded_batch_spec` at the config's sizes; stride: pixels per latent pixel."""
    layout, model = Layout(**config.layout), config.model
    return encoded_batch_spec(
        layout, action_dim=model.action_dim, state_dim=model.state_dim, text=(model.text_length, model.text_dim),
        latent=(layout.height // stride, layout.width // stride, model.latent_channels),
        image=(model.image_tokens, model.image_dim) if model.image_dim else None,
        concat_first_frame=model.concat_first_frame)


def identity(config, stride: int) -> dict:
    """JSON data: all that the stored numbers depend on, but the encoders' arrays and the statistics, which lie beside
    them."""
    datasets = {}
    for name, entry in mixture.entries(config.data.datasets).items():
        kept = {key: value for key, value in entry.to_dict().items() if key not in _ELSEWHERE}
        if keep := entry.get("keep"):  # what the file says counts, not where it lies
            kept["keep"] = hashlib.sha256(files.read_bytes(keep)).hexdigest()[:16]
        datasets[name] = kept | {"robot": str(get_embodiment(entry.embodiment))}
    row = {name: [list(shape), str(dtype)] for name, (shape, dtype) in _named(encoded_spec(config, stride)).items()}
    encoders = {name: config.encoders[name] for name in ("video", "text", "image", "dtype", "tile")}
    found = {"layout": config.layout.to_dict(), "crop": config.data.crop, "encoders": encoders,
             "row": row, "holdout": config.data.holdout, "datasets": datasets, "code": CONTENTS}
    return json.loads(json.dumps(found))  # tuples become lists, as the manifest holds them


def open_cache(config, stride: int) -> LatentCache | None:
    """The cache at data.cache, None without one. Raises CacheError where it was made for another config."""
    return LatentCache(config.data.cache, identity(config, stride), encoded_spec(config, stride)) \
        if config.data.cache else None


def check_encoders(config, stride: int, frozen: dict) -> None:
    """Raises CacheError where the run's encoders, perhaps a checkpoint's, are not those of data.cache."""
    cache = open_cache(config, stride)
    if cache and (found := encoders_hash(frozen)) != cache.manifest["encoders"]:
        raise CacheError(f"data.cache = {config.data.cache} holds latents of encoders {cache.manifest['encoders']}, "
                         f"this run's have hash {found}: a checkpoint of other encoders cannot go on from this cache")


def encoders_hash(frozen: dict) -> str:
    """Of {"video": {name: array}, "text": {...}}."""
    return arrays_hash(flat_encoders(frozen))


def flat_encoders(frozen: dict) -> dict:
    """{"video": {name: array}} -> {"video.name": array}."""
    return {f"{part}.{name}": value for part, arrays in frozen.items() for name, value in arrays.items()}


def _named(spec: dict) -> dict:
    return {name: (shape, getattr(dtype, "__name__", dtype)) for name, (shape, dtype) in spec.items()}
