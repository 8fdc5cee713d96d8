"""From the cameras of a robot to the one canvas that the video codec sees."""

import functools
from collections.abc import Callable, Sequence

import numpy as np


@functools.lru_cache(maxsize=64)
def _taps(size: int, out: int) -> tuple[np.ndarray, np.ndarray]:
    """Triangle filter, widened by the scale when shrinking (antialiased bilinear): source index int64 and weight
    float32, both [taps, out]."""
    scale = max(size / out, 1.0)
    centre = (np.arange(out) + 0.5) * size / out - 0.5
    index = np.floor(centre - scale).astype(np.int64) + 1 + np.arange(int(2 * scale) + 2)[:, None]
    weight = np.maximum(0.0, 1.0 - np.abs(index - centre) / scale) * ((index >= 0) & (index < size))
    return np.clip(index, 0, size - 1), (weight / weight.sum(0)).astype(np.float32)


def _resize_axis(x: np.ndarray, out: int, axis: int) -> np.ndarray:
    # a few gathers and not a matrix product: the threads of a BLAS would fight those that feed the accelerator
    total = np.float32(0)
    for index, weight in zip(*_taps(x.shape[axis], out)):
        if weight.any():
            total = total + np.take(x, index, axis) * np.expand_dims(weight, [i for i in range(x.ndim) if i != axis])
    return total


def resize(frames: np.ndarray, height: int, width: int) -> np.ndarray:
    """uint8 [n, H, W, 3] -> uint8 [n, height, width, 3], antialiased bilinear; aspect ratios may change."""
    if frames.shape[1:3] == (height, width):
        return frames
    resized = _resize_axis(_resize_axis(frames, height, 1), width, 2)
    return np.clip(np.rint(resized), 0, 255).astype(np.uint8)


def _single(views: Sequence[np.ndarray], height: int, width: int) -> np.ndarray:
    if len(views) != 1:
        raise ValueError(f"view layout 'single' takes 1 view, found {len(views)}")
    return resize(views[0], height, width)


def _side_by_side(views: Sequence[np.ndarray], height: int, width: int) -> np.ndarray:
    if width % len(views):
        raise ValueError(f"view layout 'side_by_side': layout.width = {width} does not divide by "
                         f"{len(views)} views")
    return np.concatenate([resize(v, height, width // len(views)) for v in views], axis=2)


def _t_shape(views: Sequence[np.ndarray], height: int, width: int) -> np.ndarray:
    """The first view below, two at half its size above it."""
    if len(views) != 3 or height % 3 or width % 2:
        raise ValueError(f"view layout 't_shape' takes 3 views, a height that divides by 3 and an even width; found "
                         f"{len(views)} views, {height} x {width} pixels")
    top = [resize(view, height // 3, width // 2) for view in views[1:]]
    return np.concatenate([np.concatenate(top, axis=2), resize(views[0], height - height // 3, width)], axis=1)


# name -> f(views in the embodiment's order, each uint8 [n, H, W, 3]; height, width) -> uint8 [n, height,
# width, 3]. Every view is resized inside its own cell, so that no pixel mixes two cameras.
VIEW_LAYOUTS: dict[str, Callable[[Sequence[np.ndarray], int, int], np.ndarray]] = {
    "single": _single,
    "side_by_side": _side_by_side,
    "t_shape": _t_shape,
}
