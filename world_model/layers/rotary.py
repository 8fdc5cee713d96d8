"""Rotary position embedding from a table of angles per token, which the host makes in float64.

A head's d/2 angles stand for a video token's (time, row, column) or for an action's single index. Heads are stored
half-split: component i is rotated with component i + d/2. The published weights rotate (2i, 2i + 1); import and export
permute the columns of q and k once (world_model/weights/names.py), because a minor dimension of 2 wastes the vector
lanes of every accelerator.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

THETA = 10_000.0


def video_angles(frames: np.ndarray, rows: int, columns: int, head_dim: int) -> np.ndarray:
    """Returns the angles of tokens ordered frame, row, column: float64 [len(frames) * rows * columns, head_dim / 2].

    The three axes are as wide as in Wan: row and column take 2 (d // 6) components each, time the rest.
    """
    axes = np.asarray(frames, np.float64), np.arange(rows), np.arange(columns)
    return position_angles(np.meshgrid(*axes, indexing="ij"), head_dim)


def position_angles(positions: Sequence[np.ndarray], head_dim: int) -> np.ndarray:
    """Returns float64 [positions, head_dim / 2]. positions: times, rows and columns, fractional or negative too."""
    (time, row, column), side = positions, 2 * (head_dim // 6)
    parts = [_angles(time, head_dim - 2 * side), _angles(row, side), _angles(column, side)]
    return np.concatenate(parts, axis=-1)


def index_angles(positions: np.ndarray, head_dim: int) -> np.ndarray:
    """Returns angles float64 [len(positions), head_dim / 2] for tokens on a line."""
    return _angles(np.asarray(positions), head_dim)


def _angles(positions: np.ndarray, width: int) -> np.ndarray:
    frequency = THETA ** (-np.arange(0, width, 2, dtype=np.float64) / width)
    return positions.reshape(-1, 1).astype(np.float64) * frequency


def table(angles: np.ndarray) -> np.ndarray:
    """Turns angles into float32 [2, L, d/2]: cosines and sines."""
    return np.stack([np.cos(angles), np.sin(angles)]).astype(np.float32)


def constant(angles: np.ndarray):
    """Makes the `table` of angles for a compiled program: float32 [2, L, d/2].

    A barrier keeps the compiler from writing out the table once per head, which would cost minutes of its time and
    hundreds of MiB of program.
    """
    return jax.lax.optimization_barrier(jnp.asarray(table(angles)))


def rotate(x, rotary):
    """x [B, L, n, d], rotary [2, L, d/2] or, where positions differ between samples, [2, B, L, d/2] -> [B, L, n, d] in
    x's dtype; the rotation itself is float32."""
    cos, sin = rotary[0][..., None, :], rotary[1][..., None, :]
    a, b = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([a * cos - b * sin, a * sin + b * cos], axis=-1).astype(x.dtype)
