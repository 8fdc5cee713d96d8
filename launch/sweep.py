"""Ablations: every variant of a config over several seeds, checked before the first starts, run, and compared.

    python -m launch.sweep --config=configs/ablations/size.py --out=runs/size --seeds=0,1,2 [--dry-run]

The file defines get_config() and get_sweep(): a list of {"name": ..., dotted key: value}, of which the first is the
base that others are compared with; or a grid {dotted key: [values]}. A variant's "arm" is what get_config is asked for,
as another family has other keys. Measured are launch.evaluate's open-loop numbers or, where the file defines
get_rollouts(): {name: options of launch.rollout}, shares of solved episodes; a variant's "rollouts" names those that it
takes part in, else all. What is whole is not run again; each run remembers the hash of
its config and of what was measured, and OUT with runs of other settings is refused. A run that fails is told in its
variant's row, the others go on, and the exit code is 1. SIGTERM saves the training that runs, and exits with 143. With
--at_once=N a variant's seeds are trained N in one program (launch/setup/steps.py), all of a study alike, as a seed then
ends like the same one alone up to rounding, which training makes larger; on CPUs as many are measured abreast as there
are cores.
Results: OUT/results.json, results.md and results.svg, with 95% confidence intervals over seeds
(launch/reporting/comparison.py).

A file that defines get_study() (launch/supervision/study.py: the question, the column that decides, the smallest effect
worth knowing, the seeds) makes the sweep a study: --lock writes it to OUT/study.json before anything runs, a sweep into
OUT then runs that study or is refused, and OUT/verdicts.{json,md} answer it, arm by arm (launch/reporting/verdicts.py).
Other seeds can be run beside it as pilots; they are named, and never counted.

With --submit and launch.submit's flags each training is a job on a pod slice of its own instead, OUT below /runs; the
same command without it, where the bucket is mounted, then measures what is trained.
"""

import dataclasses
import itertools
import json
import runpy
import sys
from pathlib import Path

import jax
from absl import flags
from ml_collections import config_flags

from data_pipelines.storage import files
from launch import submit
from launch.reporting import comparison, verdicts
from launch.reporting.comparison import Measurement
from launch.setup import flags as launch_flags
from launch.setup import initial, provenance, training
from launch.setup.experiment import Experiment
from launch.supervision import study, sweep_runs
from launch.supervision.sweep_runs import Run
from world_model.training.checkpoint import CheckpointError

NOT_KEYS = ("name", "arm", "rollouts")  # of a variant


class SweepError(ValueError):
    """A sweep that cannot be run as written; says which variant and why."""


def variants(module: dict) -> dict[str, dict]:
    """{name: overrides} of a config file's namespace. Raises SweepError where it defines none or names two alike."""
    found = {}
    for overrides in _listed(module):
        keys = {key: value for key, value in overrides.items() if key not in NOT_KEYS}
        name = overrides.get("name") or "-".join(f"{key.split('.')[-1]}_{value}" for key, value in keys.items())
        if name in found or not name.replace("_", "").replace("-", "").replace(".", "").isalnum():
            raise SweepError(f"variant {name!r}: names are of letters, digits, '_', '-', '.', each once")
        found[name] = keys
    return found


def _listed(module: dict) -> list[dict]:
    if "get_sweep" not in module:
        raise SweepError("the config file defines no get_sweep(): a list of overrides, or a grid of values")
    wanted = module["get_sweep"]()
    if isinstance(wanted, dict):
        wanted = [dict(zip(wanted, values, strict=True)) for values in itertools.product(*wanted.values())]
    return wanted


def bases(module: dict, file: str, config) -> dict[str, tuple]:
    """{variant: (config file with its arm, config that the variant's overrides change)}; config: as it was given."""
    arms = [overrides.get("arm") for overrides in _listed(module)]
    return {name: (file, config) if arm is None else (f"{file.partition(':')[0]}:{arm}", module["get_config"](arm))
            for name, arm in zip(variants(module), arms, strict=True)}


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
    experiment = Experiment(config).fitted()
    config, mesh = experiment.config, training.make_mesh(experiment.config)
    _, target = training.make_target(experiment, mesh)
    step = training.make_step(experiment, target)
    with jax.set_mesh(mesh):
        jax.eval_shape(step, target, training.abstract_batch(experiment, mesh))
    samples = config.train.steps * config.train.global_batch_size
    return {"parameters": sum(p.size for p in target["params"].values()), "steps": config.train.steps,
            "flops": experiment.model.flops_per_sample * samples}


def measurements(module: dict) -> dict[str, list[Measurement]]:
    """{variant: what is measured of its runs}. Raises SweepError for a rollout that get_rollouts() does not define."""
    if "get_rollouts" not in module:
        return {name: [comparison.OPEN_LOOP] for name in variants(module)}
    known = {name: comparison.rollout(name, options) for name, options in module["get_rollouts"]().items()}
    found = {}
    for name, overrides in zip(variants(module), _listed(module), strict=True):
        asked = overrides.get("rollouts", list(known))
        if unknown := sorted(set(asked) - set(known)):
            raise SweepError(f"variant {name!r}: get_rollouts() has no {unknown[0]!r}, only {', '.join(known)}")
        found[name] = [known[each] for each in asked]
    return found


def runs_of(starts: dict[str, tuple], wanted: dict[str, dict], measured: dict[str, list[Measurement]],
            seeds: list[int], out: Path) -> list[Run]:
    """A seed of every variant before the next; starts: of `bases`. Raises SweepError where OUT holds a run of other
    settings."""
    runs = []
    for seed, name in itertools.product(seeds, wanted):
        file, config = starts[name]
        # A student's run names its teacher: numbers of another one do not stand.
        settings = provenance.as_json(initial.with_teacher(apply(config, wanted[name] | {"seed": seed})))
        runs.append(Run(name, seed, file, settings, wanted[name], out / name / f"seed_{seed}", measured[name]))
    if problems := [problem for run in runs if (problem := run.difference())]:
        raise SweepError("; ".join(problems) + ": give another --out, or remove them")
    return runs


def submit_all(starts: dict[str, tuple], wanted: dict[str, dict], seeds: list[int], out: Path, args) -> None:
    """Starts a pod job for the training of every variant and seed, or prints it. Raises ValueError,
    CalledProcessError."""
    jobs = []
    for seed, name in itertools.product(seeds, wanted):
        workdir = str(out / name / f"seed_{seed}")
        command = submit.training_command(starts[name][0], wanted[name] | {"seed": seed}, workdir)
        label = "".join(c if c.isalnum() else "-" for c in f"{args.name}-{name}-{seed}".lower())
        jobs.append(submit.job_of(args, label, command, workdir))
    for job in jobs:  # none is started where one cannot be
        submit.start(job, args)


def answer(stored: dict, runs: list[Run], out: Path) -> str:
    """Writes OUT/verdicts.json and verdicts.md from the planned runs that are whole. Returns the latter."""
    plan, values = stored["plan"], {}
    for run in runs:
        if plan["primary"] in {metric for m in run.measured for metric in m.metrics}:
            found = run.values(plan["primary"])
            values.setdefault(run.name, {}).update({} if found is None else {run.seed: found})
    first, *arms = values
    judged = [verdicts.judge(arm, values[arm], values[first], plan) for arm in arms]
    planned = {run.workdir for run in runs}
    apart = [str(path.relative_to(out)) for path in sorted(out.glob("*/seed_*")) if path not in planned]
    files.write_json(f"{out}/verdicts.json", {"hash": stored["hash"], "question": plan["question"], "apart": apart,
                                              "verdicts": [dataclasses.asdict(each) for each in judged]})
    text = verdicts.text(plan, first, judged, apart, stored["hash"])
    files.write_text(f"{out}/verdicts.md", text)
    return text


def main(_) -> None:
    args = flags.FLAGS
    file = config_flags.get_config_filename(args["config"])
    out = Path(args.out)
    module = runpy.run_path(file.partition(":")[0])
    given = launch_flags.overridden(args["config"])  # holds for every variant that does not say otherwise
    wanted = {name: given | overrides for name, overrides in variants(module).items()}
    starts, measured, checked = bases(module, file, args.config), measurements(module), {}
    for name, overrides in wanted.items():
        try:
            config = apply(starts[name][1], overrides)
            checked[name] = check(config) | {"config": provenance.config_hash(provenance.as_json(config))}
        except (ValueError, TypeError) as error:
            raise SweepError(f"variant {name}: {error}") from error
    if args.lock:
        digest = study.lock(out, study.plan(study.read(module), checked, measured))
        return print(f"locked {out / study.FILE}, {digest}")
    stored = study.locked(out)
    if stored:
        study.check_same(stored, study.plan(study.read(module), checked, measured))
    seeds = launch_flags.seeds(args.seeds) if args.seeds else stored["plan"]["seeds"] if stored else [0]
    if args.submit:
        return submit_all(starts, wanted, seeds, out, args)
    rows = sweep_runs.run(runs_of(starts, wanted, measured, seeds, out), checked, args["dry-run"].value, args.at_once)
    if any(row["seeds"] or row["failed"] for row in rows):
        files.write_text(f"{out}/results.json", json.dumps(rows, indent=1) + "\n")
        files.write_text(f"{out}/results.md", comparison.table(rows))
        files.write_bytes(f"{out}/results.svg", comparison.plot(rows))
    print("\n" + comparison.table(rows))
    if stored:
        print(answer(stored, runs_of(starts, wanted, measured, stored["plan"]["seeds"], out), out))
    if any(row["failed"] for row in rows):
        sys.exit(1)


if __name__ == "__main__":
    launch_flags.define_config()
    flags.DEFINE_string("out", None, "directory of all runs: OUT/VARIANT/seed_N")
    flags.DEFINE_list("seeds", None, "seeds of every variant; default: the locked study's, or 0")
    flags.DEFINE_integer("at_once", 1, "seeds of a variant that are trained in one program", lower_bound=1)
    flags.DEFINE_bool("lock", False, "write down the study that the config file defines, and run nothing")
    flags.DEFINE_bool("submit", False, "train on pods, a job for each run")
    submit.define()
    flags.mark_flags_as_required(["config", "out"])
    launch_flags.run(main, CheckpointError)
