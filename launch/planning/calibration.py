"""What published steps taught about plans: how long the parts of a step really take, and how far off a plan may be.

`python -m benchmarks.calibration` compiles programs whose step time somebody published, fits these numbers to them and
prints the table at the head of docs/plans.md. A test holds them to benchmarks/calibration/measured.json.
"""

from typing import NamedTuple

WEIGHTS = {"compiled": 0.71, "kernels": 1.16, "exchange": 1.41}  # seconds that pass per second of a part
ERRORS = (0.79, 1.25)  # least and most of published over predicted, each by a fit without that step
PLANNED = "planned, not run"


class Interval(NamedTuple):
    """Seconds of a step."""

    expected: float
    least: float
    most: float


def step_seconds(parts: dict[str, float], calibrated: bool) -> Interval:
    """Weighs the parts of a step (launch/planning/estimate.py).

    Without calibration (GPUs) the interval reaches from all communication hidden behind the work to none of it, and its
    middle is expected.
    """
    if calibrated:
        expected = sum(WEIGHTS[name] * seconds for name, seconds in parts.items())
        return Interval(expected, *(error * expected for error in ERRORS))
    work = parts["compiled"] + parts["kernels"]
    least, most = max(work, parts["exchange"]), work + parts["exchange"]
    return Interval((least + most) / 2, least, most)
