"""What a study's runs answer: differences paired by seed and by starting state, their interval, and a verdict.

A value of a run is one number, or one per starting state (episodes of a rollout, the same for all runs). The interval
of a difference is the widest of three at 95%: the bootstrap over seeds and over starting states (BCa, scipy), and
Student's t over seeds, as a bootstrap of few values is too narrow. The interquartile mean over seeds and states stands
beside (arXiv 2108.13264).
"""

import dataclasses
from collections.abc import Callable, Mapping

import numpy as np
import scipy.stats

CONFIDENCE, POWER = 0.95, 0.8
RULE = ("supported: the interval lies above 0 and the mean reaches the smallest effect; refuted: the interval lies "
        "below the smallest effect; else undecided. All seeds of the plan are counted, and no others.")
SUPPORTED, REFUTED, UNDECIDED = "supported", "refuted", "undecided"


@dataclasses.dataclass(frozen=True)
class Verdict:
    """An arm against the first one."""

    arm: str
    verdict: str
    why: str
    mean: float | None = None  # mean difference, larger being better
    low: float | None = None
    high: float | None = None
    quartile_mean: float | None = None  # interquartile mean of the differences
    deviation: float | None = None  # standard deviation over seeds of the paired difference
    detectable: float | None = None  # a true effect that so many seeds find with a power of 80%


def judge(arm: str, values: Mapping[int, np.ndarray], base: Mapping[int, np.ndarray], plan: Mapping) -> Verdict:
    """Compares two arms, {seed: value, or values by starting state}; plan: seeds, smallest_effect, larger_is_better."""
    missing = [seed for seed in plan["seeds"] if seed not in values or seed not in base]
    if missing:
        return Verdict(arm, UNDECIDED, f"seeds {', '.join(map(str, missing))} are not done in both arms")
    sign = 1 if plan["larger_is_better"] else -1
    differences = sign * np.stack([np.atleast_1d(values[seed]) - np.atleast_1d(base[seed]) for seed in plan["seeds"]])
    low, high = interval(differences)
    by_seed, mean, smallest = differences.mean(axis=1), float(differences.mean()), plan["smallest_effect"]
    deviation = float(by_seed.std(ddof=1))
    verdict = SUPPORTED if low > 0 and mean >= smallest else REFUTED if high < smallest else UNDECIDED
    why = {SUPPORTED: "the interval lies above 0, and the mean reaches the smallest effect",
           REFUTED: "an effect as large as the smallest one lies outside the interval",
           UNDECIDED: "the interval holds both no effect and one worth knowing" if low <= 0 else
           "there is an effect, and it may be smaller than the smallest one"}[verdict]
    return Verdict(arm, verdict, why, mean, low, high, quartile_mean(differences), deviation,
                   detectable(deviation, len(by_seed)))


def interval(differences: np.ndarray) -> tuple[float, float]:
    """The widest of the three intervals; differences [seeds, states]."""
    by_seed, by_state = differences.mean(axis=1), differences.mean(axis=0)
    found = [student(by_seed), bootstrap(by_seed, np.mean)]
    if len(by_state) > 1:
        found.append(bootstrap(by_state, np.mean))
    return min(low for low, _ in found), max(high for _, high in found)


def student(values: np.ndarray) -> tuple[float, float]:
    """Student's interval of the mean."""
    if np.ptp(values) == 0:
        return float(values[0]), float(values[0])
    found = scipy.stats.ttest_1samp(values, 0.0).confidence_interval(CONFIDENCE)
    return float(found.low), float(found.high)


def bootstrap(values: np.ndarray, statistic: Callable) -> tuple[float, float]:
    """The BCa bootstrap's interval of a statistic over values."""
    if np.ptp(values) == 0:
        return float(values[0]), float(values[0])
    found = scipy.stats.bootstrap((values,), statistic, confidence_level=CONFIDENCE, vectorized=True, method="BCa",
                                  rng=np.random.default_rng(0)).confidence_interval
    return float(found.low), float(found.high)


def quartile_mean(differences: np.ndarray) -> float:
    """The mean of the middle half of all values."""
    return float(scipy.stats.trim_mean(differences.ravel(), 0.25))


def detectable(deviation: float, seeds: int) -> float:
    """The effect that a paired t-test of so many seeds finds with POWER (sum of both quantiles)."""
    quantiles = scipy.stats.t.ppf([(1 + CONFIDENCE) / 2, POWER], seeds - 1)
    return float(quantiles.sum() * deviation / np.sqrt(seeds))


def text(plan: Mapping, base: str, verdicts: list[Verdict], apart: list[str], digest: str) -> str:
    """Formats the answer as Markdown; base: the arm that the others were judged against."""
    lines = [f"## {plan['question']}", "",
             f"Locked plan {digest}. Decides: {plan['primary']}, each arm against {base}, over seeds "
             f"{', '.join(map(str, plan['seeds']))}; smallest effect worth knowing {plan['smallest_effect']:g}. "
             f"{plan['rule']}", "",
             "| arm | verdict | difference | 95% interval | interquartile mean | deviation | detectable | why |",
             "|---|---|---|---|---|---|---|---|"]
    for v in verdicts:
        numbers = ["-"] * 5 if v.mean is None else [
            f"{v.mean:+.3f}", f"{v.low:+.3f} to {v.high:+.3f}", f"{v.quartile_mean:+.3f}", f"{v.deviation:.3f}",
            f"{v.detectable:.3f}"]
        lines.append(f"| {v.arm} | {v.verdict} | {' | '.join(numbers)} | {v.why} |")
    lines += ["", f"Not in the plan, and not counted: {', '.join(apart)}."] if apart else []
    return "\n".join(lines) + "\n"
