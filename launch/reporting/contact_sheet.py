"""A picture of a latent cache."""

import jax.numpy as jnp
import numpy as np

from data_pipelines.cache.reader import LatentCache
from data_pipelines.episode import BadEpisode
from data_pipelines.samples import SampleMaker
from data_pipelines.storage import files
from world_model.encoders import VideoCodec


def contact_sheet(codec: VideoCodec, frozen: dict, makers: list[SampleMaker], made: LatentCache, windows: int = 4,
                  frames: int = 6) -> None:
    """contact_sheet.png in the cache: pixels, and under them what their stored latents decode to. frozen: the codec's
    arrays."""
    from launch.reporting.data_figures import filmstrip

    strips = []
    for maker in makers:
        for window in np.linspace(0, len(maker.windows) - 1, windows).astype(int).tolist():
            try:
                pixels = maker(window, 0)["video"]
                stored = made.read(maker.dataset.name, window, *maker.windows[window])["latents"]
            except BadEpisode:
                continue
            decoded = codec.decode(frozen, jnp.asarray(stored, jnp.float32)[None])[0]
            shown = np.linspace(0, len(pixels) - 1, frames).astype(int)
            strips += [pixels[shown], np.asarray(jnp.round((decoded + 1) * 127.5).astype(jnp.uint8))[shown]]
    files.write_bytes(f"{made.path}/contact_sheet.png", filmstrip(strips))
