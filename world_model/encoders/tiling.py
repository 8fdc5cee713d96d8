"""Large pictures in overlapping tiles of one size: one program, and memory for one tile."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

OVERLAP = 4  # a quarter of a tile, at least, is shared with its neighbour


def tiled(fn: Callable, x: jax.Array, tile: int, taken: int, given: int) -> jax.Array:
    """Runs fn over tiles of x [B, T, H, W, C] and joins what it gives by linear ramps.

    tile: cells on a side; taken, given: pixels of a cell in what fn takes and gives. A picture of no more cells than a
    tile goes through whole.
    """
    cells = [x.shape[2] // taken, x.shape[3] // taken]
    sides = [min(tile, count) for count in cells]
    if sides == cells:
        return fn(x)
    corners = [(i, j) for i in starts(cells[0], sides[0]) for j in starts(cells[1], sides[1])]

    def place(corner: tuple[int, int], pixels: int) -> tuple[slice, ...]:
        """Rows and columns of the tile, where a cell has so many pixels."""
        return tuple(slice(start * pixels, (start + side) * pixels) for start, side in zip(corner, sides, strict=True))

    tiles = jax.lax.map(fn, jnp.stack([x[:, :, *place(corner, taken)] for corner in corners]))
    weight = np.stack([np.outer(*(ramp(start, side, count, given) for start, side, count in
                                  zip(corner, sides, cells, strict=True))) for corner in corners])
    total = np.zeros([count * given for count in cells])
    for corner, w in zip(corners, weight, strict=True):
        total[place(corner, given)] += w
    out = jnp.zeros((*tiles.shape[1:3], *total.shape, tiles.shape[-1]), tiles.dtype)
    for corner, one, w in zip(corners, tiles, weight, strict=True):
        share = jnp.asarray(w / total[place(corner, given)], tiles.dtype)[..., None]
        out = out.at[:, :, *place(corner, given)].add(one * share)
    return out


def starts(count: int, side: int) -> list[int]:
    """The first cells of as few tiles as overlap by a quarter, spread evenly from edge to edge."""
    step = side - -(-side // OVERLAP) if side < count else side
    tiles = 1 + -(-(count - side) // max(1, step))
    return np.round(np.linspace(0, count - side, tiles)).astype(int).tolist()


def ramp(start: int, side: int, count: int, given: int) -> np.ndarray:
    """A tile's weight along one axis, [side * given]; it rises over a quarter of the tile from an inner edge."""
    pixels = np.arange(side * given) + 0.5
    width = side * given / OVERLAP
    rise = np.minimum(1, pixels / width) if start else np.ones_like(pixels)
    fall = np.minimum(1, pixels[::-1] / width) if start + side < count else np.ones_like(pixels)
    return rise * fall
