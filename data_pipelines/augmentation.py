"""Crops and colour jitter, the same for all frames and views of a sample: a function of (seed, sample index) alone.

Brightness, contrast, saturation and hue are each an affine map of a pixel's colour, and so is their product: a sample's
jitter is one 3 x 4 matrix. They are applied in that order and clipped once, at the end. Hue turns the colour plane of
YIQ, which keeps grey grey. The code published with arXiv 2602.15922 (commit ab790c1) crops 0.95, at random, and takes
0.3, 0.4, 0.5 and 0.08 for the four.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

_GREY = np.array([0.299, 0.587, 0.114])  # weights of red, green, blue
_YIQ = np.array([_GREY, [0.595716, -0.274453, -0.321263], [0.211456, -0.522591, 0.311135]])


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """How a view's picture is cut and how its colours change; by default pixels stay as they are."""

    crop: float = 1.0  # share of each view's height and width that is kept
    random_crop: bool = False  # True: that share lies at a random place; False: in the centre
    brightness: float = 0.0  # the factor is random between 1 - x and 1 + x
    contrast: float = 0.0  # likewise, around the sample's mean grey
    saturation: float = 0.0  # likewise, around each pixel's grey
    hue: float = 0.0  # random between -x and x, as a share of a full turn

    def __post_init__(self):
        if not 0 < self.crop <= 1:
            raise ValueError(f"data.crop = {self.crop}: expected a share in (0, 1]")
        for name, most in (("brightness", 1), ("contrast", 1), ("saturation", 1), ("hue", 0.5)):
            if not 0 <= getattr(self, name) <= most:
                raise ValueError(f"data.augment.{name} = {getattr(self, name)}: expected 0 to {most}")

    @property
    def still(self) -> "Augmentation":
        """Returns the deterministic form, for evaluation, robots and the latent cache: centre crop, no jitter."""
        return Augmentation(crop=self.crop)

    def cut(self, views: list[np.ndarray], seed: int, sample_index: int) -> list[np.ndarray]:
        """Cuts views uint8 [n, H, W, 3], each at the same place of its own height and width."""
        down, right = self._random(seed, sample_index).random(2) if self.random_crop else (0.5, 0.5)
        return [_cut(view, self.crop, down, right) for view in views]

    def colour(self, views: list[np.ndarray], seed: int, sample_index: int) -> list[np.ndarray]:
        """Changes the colours of views uint8 [n, H, W, 3]: all frames by one matrix, shapes and type stay."""
        strengths = np.array([self.brightness, self.contrast, self.saturation, self.hue])
        if not strengths.any():
            return views
        changes = self._random(seed, sample_index).uniform(-1, 1, 6)[2:] * strengths  # the first two are the crop's
        grey = float(np.mean([view[:, ::4, ::4].mean((0, 1, 2)) for view in views], 0) @ _GREY)
        matrix = colour_matrix((1 + changes[:3]).tolist(), changes[3], grey)
        return [_apply_matrix(view, matrix) for view in views]

    def _random(self, seed: int, sample_index: int) -> np.random.Generator:
        return np.random.default_rng([seed, sample_index, 0x0C0105])  # another stream than the loader's own


PLAIN = Augmentation()


def colour_matrix(factors: Sequence[float], turn: float, grey: float) -> np.ndarray:
    """The jitter as a matrix [3, 4]: the factors of red, green and blue, and what is added.

    factors: of brightness, contrast and saturation; turn: the change of hue, as a share of a full turn; grey: the
    pixels' mean, 0 to 255.
    """
    brightness, contrast, saturation = factors
    cos, sin = np.cos(2 * np.pi * turn), np.sin(2 * np.pi * turn)
    hue = np.linalg.inv(_YIQ) @ np.array([[1, 0, 0], [0, cos, -sin], [0, sin, cos]]) @ _YIQ
    colours = hue @ (saturation * np.eye(3) + (1 - saturation) * np.tile(_GREY, (3, 1)))
    offset = (1 - contrast) * brightness * grey  # the same for all three, which neither hue nor saturation changes
    return np.concatenate([contrast * brightness * colours, np.full((3, 1), offset)], 1)


def _cut(view: np.ndarray, share: float, down: float, right: float) -> np.ndarray:
    height, width = (max(1, int(side * share)) for side in view.shape[1:3])
    top, left = round(down * (view.shape[1] - height)), round(right * (view.shape[2] - width))
    return view[:, top:top + height, left:left + width]


def _apply_matrix(frames: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    from PIL import Image

    values = tuple(matrix.ravel().tolist())  # in C, frame by frame: no float copy of the window
    return np.stack([np.asarray(Image.fromarray(frame).convert("RGB", values)) for frame in frames])
