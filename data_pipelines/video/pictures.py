"""Pictures that lie encoded in a table, a step each: only the asked ones are decoded."""

import io

import numpy as np

from data_pipelines.episode import BadEpisode


def read(encoded: dict[str, np.ndarray], fields: dict[str, str], where: str,
         indices: np.ndarray) -> dict[str, np.ndarray]:
    """view -> uint8 [n, H, W, 3] of the asked steps alone.

    encoded: view -> a picture for each step; fields: view -> its name in errors. Raises BadEpisode where a picture
    cannot be decoded, or is of another size than the others.
    """
    distinct, back = np.unique(np.asarray(indices), return_inverse=True)
    return {view: _alike([decode(encoded[view][i], f"{where} step {i} {field}") for i in distinct],
                         distinct, f"{where} {field}")[back] for view, field in fields.items()}


def _alike(frames: list[np.ndarray], steps: np.ndarray, where: str) -> np.ndarray:
    for step, frame in zip(steps, frames):
        if frame.shape != frames[0].shape:
            raise BadEpisode(f"{where}: the picture of step {step} is {frame.shape[0]} x {frame.shape[1]}, that of "
                             f"step {steps[0]} {frames[0].shape[0]} x {frames[0].shape[1]}")
    return np.stack(frames)


def decode(encoded, where: str) -> np.ndarray:
    """uint8 [H, W, 3]; the strict decoder, which refuses what is cut short."""
    from PIL import Image

    try:
        with Image.open(io.BytesIO(encoded), formats=("PNG", "JPEG")) as image:
            return np.asarray(image.convert("RGB"))
    except (OSError, SyntaxError, TypeError) as error:  # an UnidentifiedImageError is an OSError
        raise BadEpisode(f"{where}: the picture cannot be decoded: {error}") from error
