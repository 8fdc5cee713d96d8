"""Turns pictures of a robot's cameras into what a model sees: one tiled canvas, or a picture of each camera."""

import functools
from collections.abc import Callable, Sequence

import numpy as np


@functools.lru_cache(maxsize=64)
def _taps(size: int, out: int) -> tuple[np.ndarray, np.ndarray]:
    """The triangle filter, which is widened by the scale when shrinking (antialiased bilinear): source index int64 and
    weight float32, both [taps, out]."""
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
    """Resizes uint8 [n, H, W, 3] to [n, height, width, 3], antialiased bilinear; aspect ratios may change."""
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
    each = width // len(views)
    return _canvas(height, width, [(0, i * each, resize(v, height, each)) for i, v in enumerate(views)])


def _canvas(height: int, width: int, cells: Sequence[tuple[int, int, np.ndarray]]) -> np.ndarray:
    """Puts each (top, left, picture) in its place of uint8 [n, height, width, 3], black where there is none. Every
    pixel is written once, because windows are tens of megabytes."""
    out = np.empty((len(cells[0][2]), height, width, 3), np.uint8)
    if sum(picture.shape[1] * picture.shape[2] for *_, picture in cells) < height * width:
        out[:] = 0
    for top, left, picture in cells:
        out[:, top:top + picture.shape[1], left:left + picture.shape[2]] = picture
    return out


def _quarter(views: Sequence[np.ndarray], height: int, width: int, counts: tuple[int, ...], name: str):
    """Resizes the views to half the height and width. Raises ValueError where that or their number does not fit."""
    if len(views) not in counts:
        raise ValueError(f"view layout {name!r} takes {' or '.join(map(str, counts))} views, found {len(views)}")
    if height % 2 or width % 2:
        raise ValueError(f"view layout {name!r}: layout.height = {height} and layout.width = {width} must be even")
    return [resize(v, height // 2, width // 2) for v in views]


def _grid(views: Sequence[np.ndarray], height: int, width: int) -> np.ndarray:
    """The views lie top left, bottom left, top right, bottom right; black where there is no fourth."""
    cells = _quarter(views, height, width, (3, 4), "grid_2x2")
    corners = [(0, 0), (height // 2, 0), (0, width // 2), (height // 2, width // 2)]
    return _canvas(height, width, [(*corner, cell) for corner, cell in zip(corners, cells)])


def _wide_top(views: Sequence[np.ndarray], height: int, width: int) -> np.ndarray:
    """The third view lies over the whole width on top, each of its pixels twice, the first two below."""
    left, right, top = _quarter(views, height, width, (3,), "wide_top")
    return _canvas(height, width, [(0, 0, top.repeat(2, axis=2)), (height // 2, 0, left),
                                   (height // 2, width // 2, right)])


def _t_shape(views: Sequence[np.ndarray], height: int, width: int) -> np.ndarray:
    """The second and third view lie side by side in the upper third, the first below them at twice their size."""
    if len(views) != 3 or height % 3 or width % 2:
        raise ValueError(f"view layout 't_shape' takes 3 views, a height of 3k and a width of 2k; found {len(views)} "
                         f"views, layout.height = {height}, layout.width = {width}")
    left, right = (resize(v, height // 3, width // 2) for v in views[1:])
    return _canvas(height, width, [(0, 0, left), (0, width // 2, right),
                                   (height // 3, 0, resize(views[0], height - height // 3, width))])


def separate_views(views: Sequence[np.ndarray], places: Sequence[int], count: int, height: int, width: int
                   ) -> np.ndarray:
    """Resizes one frame uint8 [1, H, W, 3] of each camera into a picture of its own at its place, uint8 [count, height,
    width, 3]; where there is no camera they are zero."""
    pictures = np.zeros((count, height, width, 3), np.uint8)
    for place, view in zip(places, views, strict=True):
        pictures[place:place + 1] = resize(view, height, width)
    return pictures


def view_mask(places: Sequence[int], count: int) -> np.ndarray:
    """True on the pictures that `separate_views` has filled: bool [count]."""
    return np.isin(np.arange(count), places)


# name -> f(views in the embodiment's order, each uint8 [n, H, W, 3]; height, width) -> uint8 [n, height,
# width, 3]. Every view is resized inside its own cell, so that no pixel mixes two cameras.
VIEW_LAYOUTS: dict[str, Callable[[Sequence[np.ndarray], int, int], np.ndarray]] = {
    "single": _single,
    "side_by_side": _side_by_side,
    "grid_2x2": _grid,  # AgiBot and YAM, in the code published with arXiv 2602.15922 (commit ab790c1)
    "wide_top": _wide_top,  # DROID, there too
    "t_shape": _t_shape,  # RoboTwin, in the code published with arXiv 2601.21998 (commit 58c2ae5)
}
