"""Fields that were computed beforehand, by a teacher for example, and lie beside the recordings:

    FOLDER/FIELD/000012.npy     float [steps, *shape of the field] of the source's episode 12, a row for each step

Rows are read from the mapped file one at a time.
"""

from pathlib import Path

import numpy as np

from data_pipelines.episode import BadEpisode, Episode


def read_row(folder: str, field: str, episode: Episode, step: int, shape: tuple, dtype) -> np.ndarray:
    """A field at a step of an episode. Raises BadEpisode naming the file that is missing or holds something else."""
    path = Path(folder) / field / f"{episode.index:06d}.npy"
    try:
        rows = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise BadEpisode(f"{path}: cannot be read: {error}") from error
    expected = (episode.length, *shape)
    if rows.shape != expected or rows.dtype.kind != "f":
        raise BadEpisode(f"{path}: expected float {list(expected)}, found {rows.dtype} {list(rows.shape)}")
    return np.asarray(rows[step]).astype(dtype)
