"""Comparison of a sweep's variants: what is measured of each run, means with 95% intervals over seeds, table, plot.

Intervals are Student's t; of differences from the base, Welch's.
"""

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from scipy import stats

from launch.reporting import figures


class Measurement(NamedTuple):
    """A command that measures a trained run, the file in the run's directory that it writes, and what is read there."""

    file: str
    module: str
    options: list[str]
    metrics: dict[str, Callable[[dict], float]]  # column -> number of the file

    def command(self, workdir: Path) -> list[str]:
        """Module and options."""
        return [self.module, f"--workdir={workdir}", f"--out={(workdir / self.file).parent}", *self.options]


# Video is above a copy of the first frame, action over predicting the mean.
OPEN_LOOP = Measurement("evaluation.json", "launch.evaluate", [], {
    "video gain, dB": lambda e: e["video"]["video_psnr_db"] - e["video"]["copy_last_psnr_db"],
    "action error ratio": lambda e: e["action"]["error_ratio"]})


def rollout(name: str, options: list[str]) -> Measurement:
    """The model's share of solved episodes."""
    return Measurement(f"closed_loop_{name}/closed_loop.json", "launch.rollout", options,
                       {f"solved, {name}": lambda r: r["policies"]["model"]["success_rate"]})


def results(checked: dict[str, dict], measured: dict[str, list[Measurement]], seeds: list[int],
            out: Path) -> list[dict]:
    """One row per variant: each metric's mean and interval over the seeds that are whole, and cost."""
    metrics = dict.fromkeys(metric for each in measured.values() for m in each for metric in m.metrics)
    rows = []
    for name, facts in checked.items():
        paths = [out / name / f"seed_{seed}" for seed in seeds]
        whole = [path for path in paths if all((path / m.file).exists() for m in measured[name])]
        row = {"variant": name, "seeds": len(whole), **facts, "seconds": sum(map(_seconds, whole)), **metrics}
        for m in measured[name]:
            found = [json.loads((path / m.file).read_text()) for path in whole]
            row |= {metric: interval([read(each) for each in found]) for metric, read in m.metrics.items()}
        rows.append(row)
    equal = [key for key in ("steps", "flops") if len({row[key] for row in rows}) == 1]
    for row in rows:
        row["equal"] = equal
        row["difference"] = {metric: difference(row[metric], rows[0][metric]) for metric in metrics}
    return rows


def interval(values: list[float]) -> dict | None:
    """Mean and half of the 95% interval of the mean; no half from a single value; None of none."""
    if not values:
        return None
    if len(values) == 1:
        return {"mean": values[0], "half": None, "values": values}
    return {"mean": sum(values) / len(values), "half": _half(stats.ttest_1samp(values, 0.0)), "values": values}


def difference(one: dict | None, base: dict | None) -> dict | None:
    """Of two means, with Welch's 95% interval where both have several seeds."""
    if one is None or base is None:
        return None
    mean = one["mean"] - base["mean"]
    if one is base or min(len(one["values"]), len(base["values"])) < 2:
        return {"mean": mean, "half": None}
    return {"mean": mean, "half": _half(stats.ttest_ind(one["values"], base["values"], equal_var=False))}


def _half(test) -> float:
    found = test.confidence_interval(0.95)
    return float(found.high - found.low) / 2


def table(rows: list[dict]) -> str:
    """Markdown."""
    text = lambda x, sign="": "-" if x is None else (
        f"{x['mean']:{sign}.3f}" + ("" if x["half"] is None else f" ± {x['half']:.3f}"))
    equal, metrics = " and ".join(rows[0]["equal"]) or "neither steps nor FLOP", list(rows[0]["difference"])
    base = rows[0]["variant"]
    lines = [f"Compared at equal {equal}; mean ± 95% interval over seeds; differences are from {base}.", "",
             "| variant | seeds | " + " | ".join(f"{m} | difference" for m in metrics) + " | PFLOP | seconds |",
             "|---" * (4 + 2 * len(metrics)) + "|"]
    for row in rows:
        cells = [f"{text(row[m])} | {text(row['difference'][m], '+')}" for m in metrics]
        lines.append(f"| {row['variant']} | {row['seeds']} | {' | '.join(cells)} | {row['flops'] / 1e15:.2g} | "
                     f"{row['seconds']:.0f} |")
    return "\n".join(lines) + "\n"


def _seconds(workdir: Path) -> float:
    """Of training, by its own log."""
    records = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    config = json.loads((workdir / "config.json").read_text())
    steps = [after["step"] - before["step"] for before, after in itertools.pairwise([{"step": 0}, *records])]
    return sum(n * config["train"]["global_batch_size"] / r["samples_per_second"]
               for n, r in zip(steps, records, strict=True))


def plot(rows: list[dict]) -> bytes:
    """SVG: one panel a metric, a point and interval a variant, and each seed as a dot."""
    return figures.intervals([row["variant"] for row in rows],
                             {metric: [row[metric] for row in rows] for metric in rows[0]["difference"]})
