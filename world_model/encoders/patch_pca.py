"""A linear video codec with the Wan VAE's contract, fitted in closed form in seconds: no weights to download.

The encoder has the principal components of 8 x 8 pixel patches: of the first frame alone ([8, 8, 3] -> C) and of every
four frames after it ([4, 8, 8, 3] -> C). The second basis is turned within its span (orthogonal Procrustes) towards
"the first basis, held for four frames": a scene that stands still then has nearly the same latent in either kind, at no
loss. The decoder is a ridge regression of a patch on the 3 x 3 latents around it: about 1 dB better on PushT than the
components alone, and without the seams between patches.
"""

import dataclasses
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
from scipy.linalg import eigh

TEMPORAL, SPATIAL = 4, 8  # strides
PIXELS = SPATIAL * SPATIAL * 3  # values of a patch of one frame
STD_FLOOR = 2 / 255 / 12**0.5  # noise of rounding to 8 bits: components below it are not amplified
RIDGE = 1e-5  # share of the mean variance of a feature


@dataclasses.dataclass(frozen=True)
class PatchPca:
    """A `VideoCodec` by principal components. Arrays: see `fit`."""

    channels: int = 16
    temporal_stride: int = TEMPORAL
    spatial_stride: int = SPATIAL

    def init(self, clips: Callable[[], np.ndarray]) -> dict:
        """Fits the codec on uint8 [n, T, H, W, 3]."""
        return fit(clips(), self.channels)

    def load(self, kept: dict) -> dict:
        """Returns what was kept."""
        return kept

    def encode(self, params: dict, video: jax.Array) -> jax.Array:
        """float [B, T, H, W, 3] in [-1, 1] -> normalised latents float32 [B, F, h, w, C]. Raises ValueError where
        T is not 4k + 1 or a side not a multiple of 8."""
        _check(video.shape)
        mean, first, later = params["mean"], params["first_encoder"], params["later_encoder"]
        # The mean is taken off the 16 projections, not off the 768 pixels that they come from.
        first = _matmul(_patches(video[:, :1], 1), first) - _matmul(mean, first)
        later = _matmul(_patches(video[:, 1:], TEMPORAL), later) - _matmul(jnp.tile(mean, TEMPORAL), later)
        return (jnp.concatenate([first, later], axis=1) - params["latent_mean"]) / params["latent_std"]

    def encode_first(self, params: dict, frame: jax.Array, frames: int) -> jax.Array:
        """See `VideoCodec`. No latent reaches into another here, so mid-grey is encoded once for all samples."""
        grey = self.encode(params, jnp.zeros((1, frames, *frame.shape[2:])))[:, 1:]
        grey = jnp.broadcast_to(grey, (len(frame), *grey.shape[1:]))
        return jnp.concatenate([self.encode(params, frame), grey], axis=1)

    def decode(self, params: dict, latents: jax.Array) -> jax.Array:
        """Normalised latents [B, F, h, w, C] -> float32 [B, T, H, W, 3], clipped to [-1, 1]."""
        near = _neighbours(latents)
        first = _pixels(_matmul(near[:, :1], params["first_decoder"]), 1)
        later = _pixels(_matmul(near[:, 1:], params["later_decoder"]), TEMPORAL)
        return jnp.clip(jnp.concatenate([first, later], axis=1), -1, 1)


def fit(videos: np.ndarray, channels: int = 16) -> dict[str, np.ndarray]:
    """Fits the codec's arrays on clips, uint8 [n, T, H, W, 3] with T >= 5. They are float32:

        mean [192]; first_encoder [192, C], later_encoder [768, C]; latent_mean, latent_std [C];
        first_decoder [9 C + 1, 192], later_decoder [9 C + 1, 768]: rows are the neighbours and a constant
    """
    _check(videos.shape)
    if videos.shape[1] < 1 + TEMPORAL:
        raise ValueError(f"clips of {videos.shape[1]} frame(s): a codec is fitted on at least {1 + TEMPORAL}")
    encoder = _fit_encoder(videos, channels)
    params = encoder | _fit_decoder(videos, encoder)
    return {name: np.asarray(value, np.float32) for name, value in params.items()}


def _fit_encoder(videos: np.ndarray, channels: int) -> dict:
    """Fits both bases, around one mean of all frames, and the latents' statistics."""
    n, t, height, width, _ = videos.shape
    tiles = videos.reshape(n * t, height // SPATIAL, SPATIAL, width // SPATIAL, SPATIAL, 3)
    mean = np.float32(tiles.mean((0, 1, 3)) / 127.5 - 1).ravel()
    first = _components(videos, 1, mean, channels)
    held = np.tile(first, (TEMPORAL, 1)) / TEMPORAL**0.5
    later = _components(videos[:, 1:], TEMPORAL, np.tile(mean, TEMPORAL), channels)
    u, _, vt = np.linalg.svd(later.T @ held)
    later = later @ u @ vt / TEMPORAL**0.5  # scaled: four equal frames give the latent of one
    params = {"mean": mean, "first_encoder": first, "later_encoder": later, "latent_mean": 0.0, "latent_std": 1.0}
    latents = np.concatenate([_rows(PatchPca(channels).encode(params, clip)) for clip in _clips(videos)])
    # One scale for all channels: dividing each by its own would make faint detail weigh as much in the training loss
    # as the components that make the picture (the first holds 85% of PushT's variance).
    scale = max(np.sqrt(latents.var(0).mean()), STD_FLOOR)
    return params | {"latent_mean": latents.mean(0), "latent_std": np.full(channels, scale)}


def _components(videos: np.ndarray, frames: int, mean: np.ndarray, channels: int) -> np.ndarray:
    """Returns orthonormal [values, C]: directions of the largest variance of patches of `frames` frames."""
    scatter = np.float64(0)
    for clip in _clips(videos):
        rows = _rows(_patches(clip, frames)) - mean
        scatter = scatter + rows.T @ rows
    top = [len(scatter) - channels, len(scatter) - 1]  # eigenvalues come in ascending order
    return eigh(scatter, subset_by_index=top)[1][:, ::-1]


def _fit_decoder(videos: np.ndarray, params: dict) -> dict:
    """Fits ridge regressions of patches on latents around them. Every frame serves as a first frame once."""
    codec, fitted = PatchPca(params["first_encoder"].shape[1]), {}
    for name, frames in (("first_decoder", 1), ("later_decoder", TEMPORAL)):
        gram = cross = np.float64(0)
        for clip in _clips(videos):
            clip, skip = (clip.swapaxes(0, 1), 0) if frames == 1 else (clip, 1)
            near = _rows(_neighbours(codec.encode(params, clip)[:, skip:]))
            gram, cross = gram + near.T @ near, cross + near.T @ _rows(_patches(clip[:, skip:], frames))
        ridge = RIDGE * np.trace(gram) / len(gram)
        fitted[name] = np.linalg.solve(gram + ridge * np.eye(len(gram)), cross)
    return fitted


def _clips(videos: np.ndarray) -> Iterator[np.ndarray]:
    """Yields clips one by one as float32 [1, T, H, W, 3] in [-1, 1]: all at once may not fit in memory."""
    return (video[None].astype(np.float32) / 127.5 - 1 for video in videos)


def _rows(x) -> np.ndarray:
    """Flattens everything but the last axis; float32."""
    return np.asarray(x, np.float32).reshape(-1, x.shape[-1])


def _patches(video, frames: int):
    """[B, T, H, W, 3] -> [B, T / frames, h, w, frames * 192], values ordered (frame, row, column, colour)."""
    b, t, height, width, _ = video.shape
    x = video.reshape(b, t // frames, frames, height // SPATIAL, SPATIAL, width // SPATIAL, SPATIAL, 3)
    return x.transpose(0, 1, 3, 5, 2, 4, 6, 7).reshape(*x.shape[:2], x.shape[3], x.shape[5], frames * PIXELS)


def _pixels(patches, frames: int):
    """The inverse of `_patches`."""
    b, groups, h, w, _ = patches.shape
    x = patches.reshape(b, groups, h, w, frames, SPATIAL, SPATIAL, 3).transpose(0, 1, 4, 2, 5, 3, 6, 7)
    return x.reshape(b, groups * frames, h * SPATIAL, w * SPATIAL, 3)


def _neighbours(latents: jax.Array) -> jax.Array:
    """[B, F, h, w, C] -> [B, F, h, w, 9 C + 1]: the 3 x 3 latents around each (zero outside), and a 1."""
    h, w = latents.shape[2:4]
    padded = jnp.pad(latents, [(0, 0), (0, 0), (1, 1), (1, 1), (0, 0)])
    shifts = [padded[:, :, i:i + h, j:j + w] for i in range(3) for j in range(3)]
    return jnp.concatenate([*shifts, jnp.ones_like(latents[..., :1])], axis=-1)


def _matmul(x: jax.Array, weights: jax.Array) -> jax.Array:
    """Multiplies in full float32 on every backend: a codec's error is every model's floor."""
    return jnp.matmul(x, jnp.asarray(weights, jnp.float32), precision="highest")


def _check(shape: tuple) -> None:
    _, t, height, width, _ = shape
    if t % TEMPORAL != 1 or height % SPATIAL or width % SPATIAL:
        raise ValueError(f"video of {t} frames, {height} x {width} pixels: the codec takes 4k + 1 frames and sides "
                         f"that are multiples of {SPATIAL}")
