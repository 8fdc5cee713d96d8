"""Decodes pictures that lie encoded in a table, one for each step, and of those only the asked ones."""

import io

import numpy as np

from data_pipelines.episode import BadEpisode


def read(encoded: dict[str, np.ndarray], fields: dict[str, str], where: str,
         indices: np.ndarray) -> dict[str, np.ndarray]:
    """Decodes the asked steps alone: view -> uint8 [n, H, W, 3].

    encoded: view -> a picture for each step; fields: view -> its name in errors. Raises BadEpisode where a picture
    cannot be decoded, or is of another size than the others.
    """
    distinct, back = np.unique(np.asarray(indices), return_inverse=True)
    out = {}
    for view, field in fields.items():
        frames = [decode(encoded[view][i], f"{where} step {i} {field}") for i in distinct]
        out[view] = _stack(frames, distinct, f"{where} {field}")[back]
    return out


def _stack(frames: list[np.ndarray], steps: np.ndarray, where: str) -> np.ndarray:
    """The frames as one array. Raises BadEpisode where one has another size than the first."""
    for step, frame in zip(steps, frames):
        if frame.shape != frames[0].shape:
            raise BadEpisode(f"{where}: the picture of step {step} is {frame.shape[0]} x {frame.shape[1]}, that of "
                             f"step {steps[0]} {frames[0].shape[0]} x {frames[0].shape[1]}")
    return np.stack(frames)


def decode(encoded, where: str) -> np.ndarray:
    """Decodes a PNG or JPEG picture to uint8 [H, W, 3]. Raises BadEpisode where it is damaged or cut short."""
    from PIL import Image

    try:
        with Image.open(io.BytesIO(encoded), formats=("PNG", "JPEG")) as image:
            return np.asarray(image.convert("RGB"))
    except (OSError, SyntaxError, TypeError) as error:  # an UnidentifiedImageError is an OSError
        raise BadEpisode(f"{where}: the picture cannot be decoded: {error}") from error
