"""Finds the largest difference of two arrays and says in a sentence which is the first that is too large."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np


class Difference(NamedTuple):
    """The largest difference of one entry of a comparison."""

    size: float  # inf where a number is not finite
    at: tuple[int, ...]
    expected: float
    found: float


def max_difference(entry: str, expected: np.ndarray, found: np.ndarray, relative: bool = False) -> Difference:
    """The largest absolute (or relative) difference, the first of equals. Raises ValueError on different shapes, naming
    the entry. A stack [n, ., .] is compared layer by layer: float64 takes room."""
    if np.shape(expected) != np.shape(found):
        raise ValueError(f"{entry}: expected shape {np.shape(expected)}, found {np.shape(found)}")
    if len(np.shape(expected)) > 2:
        layers = [max_difference(entry, expected[i], found[i], relative) for i in range(np.shape(expected)[0])]
        i = int(np.argmax([layer.size for layer in layers]))
        return layers[i]._replace(at=(i, *layers[i].at))
    expected, found = np.asarray(expected, np.float64), np.asarray(found, np.float64)
    sizes = np.abs(found - expected)
    if relative:
        sizes /= np.maximum(np.abs(expected), 1e-12)
    sizes = np.where(np.isfinite(sizes), sizes, np.inf)
    index = np.unravel_index(np.argmax(sizes), sizes.shape)
    return Difference(float(sizes[index]), tuple(map(int, index)), float(expected[index]), float(found[index]))


def first_above(differences: Mapping[str, Difference], tolerance: float) -> str | None:
    """Makes a sentence on the first entry above the tolerance, in the mapping's order; None if there is none."""
    for entry, d in differences.items():
        if d.size > tolerance:
            above = sum(d.size > tolerance for d in differences.values())
            return (f"first above {tolerance:g}: {entry} differs by {d.size:.3g} at {d.at}: expected "
                    f"{d.expected:.7g}, found {d.found:.7g} ({above} of {len(differences)} entries are above)")
    return None
