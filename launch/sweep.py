"""Ablations: every variant of a config over several seeds, checked before the first starts, run, and compared.

    python -m launch.sweep --config=configs/ablations/noise.py --out=runs/noise --seeds=0,1,2 [--dry-run]

The file defines get_config() and get_sweep(): a list of {"name": ..., dotted key: value}, of which the first is the
base that others are compared with; or a grid {dotted key: [values]}. A run that is whole is not run again. Results:
OUT/results.json, results.md and results.svg, with 95% confidence intervals over seeds (Student's t).
"""

import itertools
import json
import runpy
import subprocess
import sys
from pathlib import Path

import jax
from absl import flags
from ml_collections import config_flags
from scipy import stats

from launch import build, figures, fit, train_parts
from launch import flags as launch_flags

# Column -> where evaluation.json has it. Video is above a copy of the first frame, action over predicting the mean.
METRICS = {
    "video gain, dB": lambda e: e["video"]["video_psnr_db"] - e["video"]["copy_last_psnr_db"],
    "action error ratio": lambda e: e["action"]["error_ratio"],
}


class SweepError(ValueError):
    """A sweep that cannot be run as written; says which variant and why."""


def variants(module: dict) -> dict[str, dict]:
    """{name: overrides} of a config file's namespace. Raises SweepError where it defines none or names two alike."""
    if "get_sweep" not in module:
        raise SweepError("the config file defines no get_sweep(): a list of overrides, or a grid of values")
    wanted = module["get_sweep"]()
    if isinstance(wanted, dict):
        wanted = [dict(zip(wanted, values, strict=True)) for values in itertools.product(*wanted.values())]
    found = {}
    for overrides in wanted:
        keys = {key: value for key, value in overrides.items() if key != "name"}
        name = overrides.get("name") or "-".join(f"{key.split('.')[-1]}_{value}" for key, value in keys.items())
        if name in found or not name.replace("_", "").replace("-", "").replace(".", "").isalnum():
            raise SweepError(f"variant {name!r}: names are of letters, digits, '_', '-', '.', each once")
        found[name] = keys
    return found


def apply(config, overrides: dict):
    """A copy of the config with dotted keys set. Raises SweepError with the nearest key for one that is unknown."""
    config = config.copy_and_resolve_references()
    known = launch_flags.keys(config)
    for key, value in overrides.items():
        if key not in known:
            raise SweepError(f"{key} is no key of the config; the nearest is {launch_flags.nearest(key, known)}")
        parent, _, leaf = key.rpartition(".")
        section = config
        for part in parent.split(".") if parent else []:
            section = section[part]
        try:
            section[leaf] = value
        except TypeError as error:
            raise SweepError(f"{key} = {value!r}: {error}") from error
    return config


def check(config) -> dict:
    """Traces the train step abstractly. Returns its size and cost. Raises ValueError, TypeError."""
    config = fit.fit(config, build.model)
    mesh, family = train_parts.make_mesh(config), build.model(config)
    _, target = train_parts.make_target(config, family, mesh)
    step = train_parts.make_step(config, build.losses(config, family), target)
    with jax.set_mesh(mesh):
        jax.eval_shape(step, target, train_parts.abstract_batch(config, family.spec, mesh))
    samples = config.train.steps * config.train.global_batch_size
    return {"parameters": sum(p.size for p in target["params"].values()), "steps": config.train.steps,
            "flops": family.flops_per_sample * samples}


def commands(file: str, overrides: dict, seed: int, workdir: Path) -> list[list[str]]:
    """What is run for one variant and seed: training, then evaluation."""
    options = [f"--config.{key}={value}" for key, value in (overrides | {"seed": seed}).items()]
    return [["launch.train", f"--config={file}", *options, f"--workdir={workdir}"],
            ["launch.evaluate", f"--workdir={workdir}"]]


def results(checked: dict[str, dict], seeds: list[int], out: Path) -> list[dict]:
    """One row per variant: each metric's mean and interval over the seeds that are whole, and cost."""
    rows = []
    for name, facts in checked.items():
        paths = [out / name / f"seed_{seed}" for seed in seeds]
        whole = [path for path in paths if (path / "evaluation.json").exists()]
        evaluations = [json.loads((path / "evaluation.json").read_text()) for path in whole]
        row = {"variant": name, "seeds": len(whole), **facts, "seconds": sum(map(_seconds, whole))}
        row |= {metric: interval([read(e) for e in evaluations]) for metric, read in METRICS.items()}
        rows.append(row)
    equal = [key for key in ("steps", "flops") if len({row[key] for row in rows}) == 1]
    for row in rows:
        row["equal"] = equal
        row["difference"] = {metric: difference(row[metric], rows[0][metric]) for metric in METRICS}
    return rows


def interval(values: list[float]) -> dict | None:
    """Mean and half of the 95% interval of the mean; no half from a single value; None of none."""
    if not values:
        return None
    if len(values) == 1:
        return {"mean": values[0], "half": None, "values": values}
    summary = stats.ttest_1samp(values, 0.0).confidence_interval(0.95)
    return {"mean": sum(values) / len(values), "half": float(summary.high - summary.low) / 2, "values": values}


def difference(one: dict | None, base: dict | None) -> dict | None:
    """Of two means, with Welch's 95% interval where both have several seeds."""
    if one is None or base is None:
        return None
    mean = one["mean"] - base["mean"]
    if one is base or min(len(one["values"]), len(base["values"])) < 2:
        return {"mean": mean, "half": None}
    found = stats.ttest_ind(one["values"], base["values"], equal_var=False).confidence_interval(0.95)
    return {"mean": mean, "half": float(found.high - found.low) / 2}


def table(rows: list[dict]) -> str:
    """Markdown."""
    text = lambda x, sign="": "-" if x is None else (
        f"{x['mean']:{sign}.3f}" + ("" if x["half"] is None else f" ± {x['half']:.3f}"))
    equal = " and ".join(rows[0]["equal"]) or "neither steps nor FLOP"
    base = rows[0]["variant"]
    lines = [f"Compared at equal {equal}; mean ± 95% interval over seeds; differences are from {base}.", "",
             "| variant | seeds | " + " | ".join(f"{m} | difference" for m in METRICS) + " | PFLOP | seconds |",
             "|---" * (4 + 2 * len(METRICS)) + "|"]
    for row in rows:
        cells = [f"{text(row[m])} | {text(row['difference'][m], '+')}" for m in METRICS]
        lines.append(f"| {row['variant']} | {row['seeds']} | {' | '.join(cells)} | {row['flops'] / 1e15:.2f} | "
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
    return figures.intervals([row["variant"] for row in rows], {metric: [row[metric] for row in rows]
                                                                for metric in METRICS})


def run(file: str, wanted: dict[str, dict], seeds: list[int], out: Path, checked: dict, dry_run: bool) -> list[dict]:
    """Runs what is not whole, one after another. Raises CalledProcessError where a command fails."""
    for name, seed in itertools.product(wanted, seeds):
        workdir = out / name / f"seed_{seed}"
        done = (workdir / "evaluation.json").exists()
        print(f"{name}, seed {seed}: {'whole' if done else 'to run'}, {workdir}", flush=True)
        for module, *options in [] if done else commands(file, wanted[name], seed, workdir):
            print("  python -m", module, *options, flush=True)
            if not dry_run:
                subprocess.run([sys.executable, "-m", module, *options], check=True)
    return results(checked, seeds, out)


def main(_) -> None:
    """The command."""
    args = flags.FLAGS
    file = config_flags.get_config_filename(args["config"])
    out = Path(args.out)
    try:
        wanted, checked = variants(runpy.run_path(file.partition(":")[0])), {}
        for name, overrides in wanted.items():
            try:
                checked[name] = check(apply(args.config, overrides))
            except (ValueError, TypeError) as error:
                raise SweepError(f"variant {name}: {error}") from error
        seeds = [int(seed) for seed in args.seeds]
        rows = run(file, wanted, seeds, out, checked, args["dry-run"].value)
    except (SweepError, subprocess.CalledProcessError) as error:
        sys.exit(f"sweep: {error}")
    if any(row["seeds"] for row in rows):
        (out / "results.json").write_text(json.dumps(rows, indent=1) + "\n")
        (out / "results.md").write_text(table(rows))
        (out / "results.svg").write_bytes(plot(rows))
    print("\n" + table(rows))


if __name__ == "__main__":
    launch_flags.define_config()
    flags.DEFINE_string("out", None, "directory of all runs: OUT/VARIANT/seed_N")
    flags.DEFINE_list("seeds", ["0"], "seeds of every variant")
    flags.DEFINE_bool("dry-run", False, "checks and prints, runs nothing")
    flags.mark_flags_as_required(["config", "out"])
    launch_flags.run(main)
