"""Comparison of a sweep's variants: what is measured of each run, means with 95% intervals over seeds, table, plot.

Intervals of means are Student's t; intervals of differences from the base are Welch's.
"""

import itertools
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
from scipy import stats

from launch.reporting.figures import BASELINE, MODEL, figure
from world_model import kinds
from world_model.training.records import read_records


class Measurement(NamedTuple):
    """A command that measures a trained run, the file in the run's directory that it writes, and what is read there."""

    file: str
    module: str
    options: list[str]
    metrics: dict[str, Callable[[dict], float | None]]  # column -> function that reads its number from the file's JSON
    rule: kinds.Rule  # what is read of the file's JSON
    each: Mapping[str, Callable[[dict], list]] = MappingProxyType({})  # column -> its numbers by starting state

    def command(self, workdir: Path) -> list[str]:
        """Lists module and options for a run."""
        return [self.module, f"--workdir={workdir}", f"--out={(workdir / self.file).parent}", *self.options]


_SCORE = kinds.optional(kinds.number())
EVALUATION = kinds.fields({  # evaluation.json
    "step": kinds.whole(), "windows": kinds.whole(), "video": kinds.fields(dict.fromkeys(
        ("video_psnr_db", "copy_last_psnr_db", "codec_psnr_db"), _SCORE)),
    "action": kinds.fields({"error_ratio": _SCORE, "repeat_last_ratio": _SCORE}, required=("error_ratio",))},
    required=("action",))
_EACH = kinds.list_of(kinds.fields({"solved": kinds.true_or_false}, required=("solved",)))
_SOLVED = kinds.fields({"success_rate": kinds.number(0, 1), "each": _EACH}, required=("success_rate", "each"))
_CLOSED_LOOP = kinds.fields({"policies": kinds.fields({"model": _SOLVED}, ("model",))}, required=("policies",))
_SPEED = kinds.fields({"samples_per_second": kinds.number(1e-9)}, required=("samples_per_second",))
_BATCH = kinds.fields({"train": kinds.fields({"global_batch_size": kinds.whole(1)}, ("global_batch_size",))},
                      required=("train",))
# The video metric is the gain over a copy of the first frame; the action error is relative to predicting the mean.
OPEN_LOOP = Measurement("evaluation.json", "launch.evaluate", [], {
    "video gain, dB": lambda e: _gain(e.get("video", {})),
    "action error ratio": lambda e: e["action"]["error_ratio"]}, EVALUATION)


def _gain(video: dict) -> float | None:
    """Subtracts two PSNRs; None where the family imagines no video, or one of them is infinite."""
    model, copy = video.get("video_psnr_db"), video.get("copy_last_psnr_db")
    return None if model is None or copy is None else model - copy


def rollout(name: str, options: list[str]) -> Measurement:
    """Makes the measurement of the model's share of solved episodes."""
    return Measurement(f"closed_loop_{name}/closed_loop.json", "launch.rollout", options,
                       {f"solved, {name}": lambda r: r["policies"]["model"]["success_rate"]}, _CLOSED_LOOP,
                       {f"solved, {name}": lambda r: [e["solved"] for e in r["policies"]["model"]["each"]]})


def results(checked: dict[str, dict], measured: dict[str, list[Measurement]], finished: dict[str, list[Path]],
            failed: dict[str, list[str]]) -> list[dict]:
    """Makes a row per variant: each metric's mean and interval over the runs that have finished, and cost.

    finished: directories of a variant's whole runs; failed: a sentence for each run that ended with an error.
    """
    metrics = dict.fromkeys(metric for each in measured.values() for m in each for metric in m.metrics)
    rows = []
    for name, facts in checked.items():
        runs = finished.get(name, [])
        row = {"variant": name, "seeds": len(runs), "failed": failed.get(name, []), **facts,
               "seconds": sum(map(_seconds, runs)), **metrics}
        for m in measured[name]:
            found = [kinds.read(path / m.file, m.rule) for path in runs]
            row |= {metric: interval([value for each in found if (value := read(each)) is not None])
                    for metric, read in m.metrics.items()}
        rows.append(row)
    equal = [key for key in ("steps", "flops") if len({row[key] for row in rows}) == 1]
    for row in rows:
        row["equal"] = equal
        row["difference"] = {metric: welch_difference(row[metric], rows[0][metric]) for metric in metrics}
    return rows


def interval(values: list[float]) -> dict | None:
    """Returns the mean and half of its 95% interval; a single value has no half, and without values it is None."""
    if not values:
        return None
    if len(values) == 1:
        return {"mean": values[0], "half": None, "values": values}
    return {"mean": sum(values) / len(values), "half": _half(stats.ttest_1samp(values, 0.0)), "values": values}


def welch_difference(one: dict | None, base: dict | None) -> dict | None:
    """Subtracts two means, with half of Welch's 95% interval where both have several seeds."""
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
    """Formats the rows as a Markdown table."""
    equal, metrics = " and ".join(rows[0]["equal"]) or "neither steps nor FLOP", list(rows[0]["difference"])
    base = rows[0]["variant"]
    lines = [f"Compared at equal {equal}; mean ± 95% interval over seeds; differences are from {base}.", "",
             "| variant | seeds | " + " | ".join(f"{m} | difference" for m in metrics) + " | PFLOP | seconds |",
             "|---" * (4 + 2 * len(metrics)) + "|"]
    for row in rows:
        cells = [f"{_text(row[m])} | {_text(row['difference'][m], '+')}" for m in metrics]
        count = f"{row['seeds']}" + (f", {len(row['failed'])} failed" if row["failed"] else "")
        lines.append(f"| {row['variant']} | {count} | {' | '.join(cells)} | {row['flops'] / 1e15:.2g} | "
                     f"{row['seconds']:.0f} |")
    lines += ["", *(f"Failed: {row['variant']}, {each}" for row in rows for each in row["failed"])]
    return "\n".join(lines).rstrip() + "\n"


def _text(found: dict | None, sign: str = "") -> str:
    if found is None:
        return "-"
    return f"{found['mean']:{sign}.3f}" + ("" if found["half"] is None else f" ± {found['half']:.3f}")


def _seconds(workdir: Path) -> float:
    """Sums the seconds of training, by its own log."""
    file = workdir / "metrics.jsonl"
    records = kinds.check(read_records(file), kinds.list_of(_SPEED), f"{file} record ")
    config = kinds.read(workdir / "config.json", _BATCH)
    steps = [after["step"] - before["step"] for before, after in itertools.pairwise([{"step": 0}, *records])]
    return sum(n * config["train"]["global_batch_size"] / r["samples_per_second"]
               for n, r in zip(steps, records, strict=True))


def plot(rows: list[dict]) -> bytes:
    """Plots the rows as SVG: a panel per metric, a mean with its interval per variant, and each seed as a dot.

    Intervals of a few values may be many times as wide as the values spread: those run out of the panel.
    """
    names, metrics = [row["variant"] for row in rows], list(rows[0]["difference"])
    with figure(1, len(metrics), 4.5 * len(metrics), 0.8 + 0.4 * len(names), sharey=True) as (buffer, axes):
        for axis, metric in zip(axes[0], metrics, strict=True):
            _plot_metric(axis, [row[metric] for row in rows])
            axis.set_title(metric)
            axis.set_yticks(range(len(names)), names)
            axis.set_ylim(len(names) - 0.5, -0.5)
    return buffer.getvalue()


def _plot_metric(axis, found: list[dict | None]) -> None:
    """Plots one metric of every variant, top down; None leaves a gap."""
    for row, values in enumerate(found):
        if values is None:
            continue
        axis.errorbar(values["mean"], row, xerr=values["half"], fmt="o", color=MODEL, capsize=3)
        axis.plot(values["values"], [row] * len(values["values"]), ".", color=BASELINE, zorder=3)
    every = [value for values in found if values for value in values["values"]]
    if spread := np.ptp(every or [0.0]):
        low, high = axis.get_xlim()
        axis.set_xlim(max(low, min(every) - spread), min(high, max(every) + spread))
