"""From the cameras of a robot to the one canvas that the video codec sees."""

import functools
from collections.abc import Callable, Sequence

import numpy as np


@functools.lru_cache(maxsize=64)
def _resize_weights(size: int, out: int) -> np.ndarray:
    """float32 [out, size]: triangle filter, widened by the scale when shrinking (antialiased bilinear)."""
    scale = max(size / out, 1.0)
    centre = (np.arange(out) + 0.5) * size / out - 0.5
    weights = np.maximum(0.0, 1.0 - np.abs(np.arange(size) - centre[:, None]) / scale)
    return (weights / weights.sum(1, keepdims=True)).astype(np.float32)


def resize(frames: np.ndarray, height: int, width: int) -> np.ndarray:
    """uint8 [n, H, W, 3] -> uint8 [n, height, width, 3], antialiased bilinear; the aspect ratio may
    change."""
    n, old_height, old_width, channels = frames.shape
    if (old_height, old_width) == (height, width):
        return frames
    x = frames.reshape(n, old_height, -1).astype(np.float32)
    x = np.matmul(_resize_weights(old_height, height), x)  # rows: [n, height, W * 3]
    x = x.reshape(n, height, old_width, channels).swapaxes(1, 2).reshape(n, old_width, -1)
    x = np.matmul(_resize_weights(old_width, width), x)  # columns: [n, width, height * 3]
    x = x.reshape(n, width, height, channels).swapaxes(1, 2)
    return np.clip(np.rint(x), 0, 255).astype(np.uint8)


def _single(views: Sequence[np.ndarray], height: int, width: int) -> np.ndarray:
    if len(views) != 1:
        raise ValueError(f"view layout 'single' takes 1 view, found {len(views)}")
    return resize(views[0], height, width)


def _side_by_side(views: Sequence[np.ndarray], height: int, width: int) -> np.ndarray:
    if width % len(views):
        raise ValueError(f"view layout 'side_by_side': layout.width = {width} does not divide by "
                         f"{len(views)} views")
    return np.concatenate([resize(v, height, width // len(views)) for v in views], axis=2)


# name -> f(views in the embodiment's order, each uint8 [n, H, W, 3]; height, width) -> uint8 [n, height,
# width, 3]. Every view is resized inside its own cell, so that no pixel mixes two cameras.
VIEW_LAYOUTS: dict[str, Callable[[Sequence[np.ndarray], int, int], np.ndarray]] = {
    "single": _single,
    "side_by_side": _side_by_side,
}
