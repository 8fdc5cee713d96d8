"""Pictures that lie in a table, one for each step: of those that are encoded only the asked ones are decoded."""

import io
from collections.abc import Mapping, Sequence

import numpy as np

from data_pipelines.episode import BadEpisode

MAX_PIXELS = 2**26  # pixels of a picture; the largest cameras have about 2**25


def read(encoded: Mapping[str, Sequence | np.ndarray], fields: dict[str, str], where: str,
         indices: np.ndarray) -> dict[str, np.ndarray]:
    """Decodes the asked steps alone: view -> uint8 [n, H, W, 3].

    encoded: view -> a picture for each step, as PNG, JPEG or pixels; fields: view -> its name in errors. Raises
    BadEpisode where a picture cannot be decoded, or is of another size than the others.
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
    """Makes uint8 [H, W, 3] of a PNG or JPEG picture, or of pixels. Raises BadEpisode where it is damaged, cut short,
    larger than any camera's, or none."""
    from PIL import Image

    if isinstance(encoded, np.ndarray):
        return _colours(encoded, where)
    try:
        with Image.open(io.BytesIO(encoded), formats=("PNG", "JPEG")) as image:
            if image.width * image.height > MAX_PIXELS:
                raise BadEpisode(f"{where}: the picture has {image.width} x {image.height} pixels: more than a camera")
            return np.asarray(image.convert("RGB"))
    except (OSError, SyntaxError, TypeError, ValueError, Image.DecompressionBombError) as error:
        raise BadEpisode(f"{where}: the picture cannot be decoded: {error}") from error


def _colours(pixels: np.ndarray, where: str) -> np.ndarray:
    """Red, green and blue of pixels uint8 [H, W, 1 to 4]."""
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or not 1 <= pixels.shape[2] <= 4:
        raise BadEpisode(f"{where}: {pixels.dtype} {list(pixels.shape)} is no picture: expected uint8 [H, W, 3]")
    return pixels[..., :3] if pixels.shape[2] > 2 else pixels[..., :1].repeat(3, 2)
