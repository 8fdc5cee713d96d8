"""Where the spread of success over trainings comes from: one JSON line of deviations in percentage points.

    python -m benchmarks.variance runs/variance

DIR is a sweep of configs/ablations/variance.py: variants are initialisations, seeds orders of data with their noise,
measurements checkpoints, all on the same starts. Components are those of a two-way analysis of variance by the method
of moments (Searle, Casella & McCulloch, Variance Components, 1992, section 4.3); one that comes out below 0 is 0.
"""

import json
import sys
from pathlib import Path

import numpy as np

from world_model import kinds

_EACH = kinds.list_of(kinds.fields({"solved": kinds.true_or_false}, ("solved",)))
_ROLLOUT = kinds.fields({"policies": kinds.fields({"model": kinds.fields({"each": _EACH}, ("each",))}, ("model",))},
                        ("policies",))


def read(out: Path) -> np.ndarray:
    """Solved episodes [initialisations, orders, checkpoints, starts]. Raises ValueError where a run lacks one."""
    runs: dict[str, dict] = {}
    for path in sorted(out.glob("*/seed_*/closed_loop_*/closed_loop.json")):
        variant, seed, measured = path.parts[-4:-1]
        runs.setdefault(variant, {}).setdefault(seed, {})[measured] = [
            each["solved"] for each in kinds.read(path, _ROLLOUT)["policies"]["model"]["each"]]
    try:
        found = np.array([[list(seed.values()) for seed in variant.values()] for variant in runs.values()], float)
    except ValueError as error:
        raise ValueError(f"{out}: its runs are not measured alike; finish the sweep") from error
    if found.ndim != 4 or min(found.shape) < 2:
        raise ValueError(f"{out} has {found.shape} variants, seeds, checkpoints, starts: expected two of each at least")
    return found


def components(solved: np.ndarray) -> dict[str, float]:
    """Variance of success, by where it comes from; `starts` is that of one start's outcome inside a training."""
    means = solved.mean((2, 3))
    rows, columns = (means.mean(axis) - means.mean() for axis in (1, 0))
    rest = means - means.mean() - rows[:, None] - columns
    each = [np.square(x).sum() / freedom for x, freedom in (
        (rows, len(rows) - 1), (columns, len(columns) - 1), (rest, (len(rows) - 1) * (len(columns) - 1)))]
    between = solved.mean(3) - means[:, :, None]
    checkpoint = np.square(between).sum() / (means.size * (solved.shape[2] - 1))
    return {"initialisation": max(0.0, each[0] - each[2] / len(columns)),
            "order": max(0.0, each[1] - each[2] / len(rows)), "both": float(each[2]), "checkpoint": float(checkpoint),
            "starts": float(solved.var(3, ddof=1).mean())}


def main(out: Path) -> None:
    """Prints the deviations; `starts` is then that of the mean over those that were played."""
    try:
        solved = read(out)
    except ValueError as error:
        sys.exit(f"variance: {error}")
    found = components(solved)
    found["starts"] /= solved.shape[3]
    print(json.dumps({"solved": solved.mean((2, 3)).round(3).tolist(), "mean": round(100 * float(solved.mean()), 1)}
                     | {name: round(100 * variance**0.5, 1) for name, variance in found.items()}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
