"""Distances between images: mean square error, PSNR and SSIM of each image."""

import jax
import jax.numpy as jnp
import numpy as np

WINDOW, SPREAD = 11, 1.5  # side and standard deviation of SSIM's Gaussian window, pixels
K1, K2 = 0.01, 0.03  # SSIM's stabilising constants, relative to the peak


def mse(a: jax.Array, b: jax.Array) -> jax.Array:
    """Mean square error of each image: [..., H, W, C] twice, any dtype -> float32 [...]."""
    return jnp.square(jnp.asarray(a, jnp.float32) - jnp.asarray(b, jnp.float32)).mean((-3, -2, -1))


def psnr_of_mse(error, peak: float = 255.0):
    """Peak signal-to-noise ratio, 10 log10(peak^2 / error), in dB; infinite for an error of 0.

    peak: the range of the values (255; 2 for [-1, 1]).
    """
    with np.errstate(divide="ignore"):
        return 10 * np.log10(peak**2 / np.asarray(error, np.float64))


def ssim(a: jax.Array, b: jax.Array, peak: float = 255.0) -> jax.Array:
    """Structural similarity (Wang et al. 2004) of each image: [..., H, W, C] twice -> float32 [...], at most 1.

    A Gaussian window of 11 x 11 pixels moves over the image, and the result is the mean over colours and over all
    positions at which it lies inside. Raises ValueError for images smaller than the window.
    """
    a, b = jnp.asarray(a, jnp.float32), jnp.asarray(b, jnp.float32)
    if min(a.shape[-3:-1]) < WINDOW:
        raise ValueError(f"SSIM needs images of at least {WINDOW} x {WINDOW} pixels, found {a.shape[-3:-1]}")
    mean_a, mean_b = _blur(a), _blur(b)
    var_a, var_b = _blur(a * a) - mean_a**2, _blur(b * b) - mean_b**2
    covariance = _blur(a * b) - mean_a * mean_b
    c1, c2 = (K1 * peak) ** 2, (K2 * peak) ** 2
    luminance = (2 * mean_a * mean_b + c1) / (mean_a**2 + mean_b**2 + c1)
    structure = (2 * covariance + c2) / (var_a + var_b + c2)
    return (luminance * structure).mean((-3, -2, -1))


def _blur(x: jax.Array) -> jax.Array:
    """Gaussian mean over windows inside the image: [..., H, W, C] -> [..., H - 10, W - 10, C]."""
    weights = np.exp(-0.5 * ((np.arange(WINDOW) - WINDOW // 2) / SPREAD) ** 2)
    weights = (weights / weights.sum()).astype(np.float32)
    for axis in (-3, -2):
        size = x.shape[axis] - WINDOW + 1
        x = sum(w * jax.lax.slice_in_dim(x, i, i + size, axis=x.ndim + axis) for i, w in enumerate(weights))
    return x
