"""Fits how long the parts of a step take to published steps, and tests the fit on the steps that it did not see."""

from typing import NamedTuple

import numpy as np

# What is expected before any step is looked at, and how much that weighs: little, but with one step left out the others
# may not tell two parts apart.
PRIOR = {"compiled": 1.0, "kernels": 1.0, "exchange": 0.5}
STRENGTH = 0.02


class Row(NamedTuple):
    """One published step beside what the other steps predict of it."""

    name: str
    measured: dict
    predicted: float

    @property
    def error(self) -> float:
        """Published over predicted."""
        return self.measured["published_seconds"] / self.predicted


def fit(cases: list[dict]) -> dict[str, float]:
    """Least squares of relative errors, with the prior; no part takes less than nothing."""
    prior = np.array(list(PRIOR.values()))
    shares = np.array([[case["seconds_by_part"][part] / case["published_seconds"] for part in PRIOR] for case in cases])
    left = shares.T @ shares + STRENGTH * np.eye(len(PRIOR))
    weights = np.linalg.solve(left, shares.T @ np.ones(len(cases)) + STRENGTH * prior)
    return {part: round(max(float(weight), 0.0), 2) for part, weight in zip(PRIOR, weights)}


def predict(case: dict, weights: dict[str, float]) -> float:
    """Seconds of a step."""
    return sum(weights[part] * seconds for part, seconds in case["seconds_by_part"].items())


def leave_one_out(cases: dict[str, dict]) -> list[Row]:
    """Predicts each case by a fit to the others."""
    return [Row(name, case, predict(case, fit([other for key, other in cases.items() if key != name])))
            for name, case in cases.items()]


def errors(rows: list[Row]) -> tuple[float, float]:
    """The least and the most of published over predicted, rounded outwards."""
    found = [row.error for row in rows]
    return float(np.floor(100 * min(found)) / 100), float(np.ceil(100 * max(found)) / 100)
