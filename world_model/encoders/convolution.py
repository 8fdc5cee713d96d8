"""Convolutions over time, rows and columns, as each kind of device does them fast: channels last, [B, T, H, W, C]."""

import jax
import jax.numpy as jnp
import numpy as np


def convolve(x, kernel, stride=(1, 1, 1), padding=((0, 0), (0, 0)), together=1):
    """Convolves x [B, T, H, W, C] with kernel [t, h, w, C, C']; sums are float32. stride: of time, rows, columns;
    padding: of rows and columns. together: frames whose results may share rounding errors; others do not reach them by
    a bit."""
    return jax.lax.platform_dependent(
        x, kernel, cpu=lambda x, k: by_pictures(x.astype(jnp.float32), k, stride, padding, together).astype(x.dtype),
        cuda=lambda x, k: by_pictures(x, k, stride, padding), default=lambda x, k: at_once(x, k, stride, padding))


def at_once(x, kernel, stride, padding):
    """Does `convolve` by one three-dimensional convolution."""
    return jax.lax.conv_general_dilated(
        x, kernel, stride, ((0, 0), *padding), dimension_numbers=("NTHWC", "THWIO", "NTHWC"),
        preferred_element_type=jnp.float32).astype(x.dtype)


# Short convolutions over time (Winograd; arXiv 1509.09308): `frames` outputs of three taps from frames + 2 products.
# frames -> matrices that make products of the input's frames, products of the kernel's taps, and outputs of products
SHORT = {
    2: (((1, 0, -1, 0), (0, 1, 1, 0), (0, -1, 1, 0), (0, 1, 0, -1)),
        ((1, 0, 0), (1 / 2, 1 / 2, 1 / 2), (1 / 2, -1 / 2, 1 / 2), (0, 0, 1)),
        ((1, 1, 1, 0), (0, 1, -1, -1))),
    4: (((4, 0, -5, 0, 1, 0), (0, -4, -4, 1, 1, 0), (0, 4, -4, -1, 1, 0), (0, -2, -1, 2, 1, 0), (0, 2, -1, -2, 1, 0),
         (0, 4, 0, -5, 0, 1)),
        ((1 / 4, 0, 0), (-1 / 6, -1 / 6, -1 / 6), (-1 / 6, 1 / 6, -1 / 6), (1 / 24, 1 / 12, 1 / 6),
         (1 / 24, -1 / 12, 1 / 6), (0, 0, 1)),
        ((1, 1, 1, 1, 1, 0), (0, 1, -1, 2, -2, 0), (0, 1, 1, 4, 4, 0), (0, 1, -1, 8, -8, 1))),
}


def by_pictures(x, kernel, stride, padding, together=1):
    """Does `convolve` by convolutions of pictures in x's dtype, tap by tap; taps add up in float32. On a CPU those over
    three dimensions are slow, and on a GPU they would be float32, channels first. Four frames `together` of three taps
    take six convolutions instead of twelve, and differ from the sum of taps by 3e-6 in float32."""
    taps, step = kernel.shape[0], stride[0]
    frames = (x.shape[1] - taps) // step + 1
    size = together if taps == 3 and step == 1 and together in SHORT else 1
    inputs, weights, outputs = SHORT.get(size, (np.eye(taps), np.eye(taps), np.ones((1, taps))))
    kernel, dtype = kernel.astype(jnp.float32), x.dtype
    seen = [x[:, i:i + (frames - size) * step + 1:size * step] for i in range(len(inputs))]  # [B, frames / size, ...]
    products = [jax.lax.conv_general_dilated(
        _combined(row, seen).reshape(-1, *x.shape[2:]), _combined(weight, kernel).astype(dtype), stride[1:], padding,
        dimension_numbers=("NHWC", "HWIO", "NHWC")).astype(jnp.float32)
        for row, weight in zip(inputs, weights, strict=True)]
    out = jnp.stack([_combined(row, products) for row in outputs], axis=1)
    out = out.reshape(x.shape[0], -1, size, *out.shape[2:])
    return out.reshape(x.shape[0], frames, *out.shape[3:]).astype(dtype)


def _combined(row, parts):
    return sum(part if c == 1 else float(c) * part for c, part in zip(row, parts, strict=True) if c)
