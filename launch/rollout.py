"""Closed-loop evaluation: the model acts in a simulator, beside policies that need no model (extra: sim).

    python -m launch.rollout --workdir=runs/quickstart [--task=pusht --episodes=50 --seed=1000 --execute=16 --out=DIR]
    python -m launch.rollout --workdir=DIR --task=button-press-topdown-v3-green --baselines=  # in other colours, alone

Episodes SEED, SEED + 1, ... run in parallel: the model is asked for a chunk for all of them at once, and sees in
return the frames that really came. The same seeds are given to `repeat_last`, `mean`, `random` and, as what can be
reached, to the scripted `expert` that recorded the training data. With --latency=4 the model also acts as if it took 4
control steps to answer, waiting for it and not (launch/simulation/asynchronous.py).

Writes OUT/closed_loop.json (default OUT: WORKDIR/closed_loop), OUT/strip.png, the best episode with what was imagined
under it, and OUT/best_*.mp4, worst_*.mp4: what happened, beside what was imagined; with --rerun also *.rrd of the same
episodes (launch/simulation/rerun_log.py). The report shows what stands in WORKDIR/closed_loop. With --videos=0 only
numbers are written, and only what the model looks at is rendered, which is most of the time of a MuJoCo task.
"""

import collections
import dataclasses
import functools
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags

from data_pipelines.storage import files
from launch.serving.engine import Engine, ModelError
from launch.setup import flags as launch_flags
from launch.setup.restore import restore
from launch.simulation import asynchronous, closed_loop, episode_pictures, rerun_log
from launch.simulation.asynchronous import Mode
from launch.simulation.closed_loop import Mean, ModelPolicy, Random, Run
from launch.simulation.simulators import Simulation
from world_model.training.checkpoint import CheckpointError

TRIVIAL = ("repeat_last", "mean", "random")
BASELINES = (*TRIVIAL, "expert")
RESULT, STRIP = "closed_loop.json", "strip.png"


def evaluate(simulation: Simulation, *, seed: int, execute: int | None = None, latency: int = 0, overlap: int = 2,
             max_steps: int | None = None, baselines: Sequence[str] = BASELINES, pictures: bool = True, say=print
             ) -> tuple[dict, list[Run]]:
    """(result as JSON values, the model's episodes: as many as the engine has sessions). baselines: of BASELINES,
    played beside the model; pictures: of every step, not of those alone that the model looks at. Raises ValueError."""
    if unknown := set(baselines) - set(BASELINES):
        raise ValueError(f"--baselines={','.join(unknown)}: there are {', '.join(BASELINES)}")
    engine, measure = simulation.engine, simulation.task.measure
    statistics, horizon = engine.robot.statistics, engine.robot.horizon
    execute = execute or horizon
    if execute > horizon:
        raise ValueError(f"--execute={execute}: the model predicts {horizon} actions at a time")
    fresh = functools.partial(simulation.make_runs, range(seed, seed + engine.sessions), max_steps)
    model = ModelPolicy(engine, simulation.instruction)
    policies: dict[str, tuple[closed_loop.Policy, int]] = {
        "model": (model, execute), "repeat_last": (closed_loop.repeat_last, 1),
        "mean": (Mean(statistics), 1), "random": (Random(statistics, horizon), horizon),
        "expert": (closed_loop.expert, 1)}
    result: dict[str, Any] = simulation.settings(seed) | {"measure": measure, "execute": execute, "policies": {}}
    played = []
    for name in ("model", *baselines):
        (policy, count), began, runs = policies[name], time.monotonic(), fresh()
        closed_loop.play(policy, runs, count, 0 if policy is not model else 1 if pictures else model.every(count))
        played = played or runs  # the model's alone: a world of Meta-World takes 20 MB
        found = result["policies"][name] = closed_loop.scores(runs) | {"seconds": time.monotonic() - began}
        say(describe(name, found, measure))
    if latency:
        result["latency"] = evaluate_latency(simulation, latency, overlap, fresh, say)
    if played_trivial := [name for name in TRIVIAL if name in baselines]:
        best = max(played_trivial, key=lambda name: result["policies"][name]["coverage"])
        result["against"] = {"policy": best} | closed_loop.paired_difference(
            result["policies"]["model"], result["policies"][best])
    result["interventions"] = dict(sum((run.interventions for run in played), collections.Counter()))
    gaps = [gap for run in played for gap in run.gaps]
    result["imagination_gap"] = float(np.mean(gaps)) if gaps else None
    return result, played


def evaluate_latency(simulation: Simulation, latency: int, overlap: int, fresh, say) -> dict:
    """The model with a latency of so many control steps, in every way of living with it. fresh: makes the episodes."""
    found = {}
    for name, mode in {"synchronous": Mode(latency, asynchronous=False),
                       "asynchronous": Mode(latency, overlap=overlap),
                       "not_grounded": Mode(latency, overlap=overlap, grounded=False)}.items():
        runs, policy = fresh(), ModelPolicy(simulation.engine, simulation.instruction)
        executors = asynchronous.play(policy, runs, mode, simulation.engine.robot.horizon)
        found[name] = dataclasses.asdict(mode) | closed_loop.scores(runs) | asynchronous.smoothness(executors)
        found[name]["against_synchronous"] = closed_loop.paired_difference(found[name], found["synchronous"])
        words, (low, high) = describe(name, found[name], simulation.task.measure), found[name]["jerk_ci"]
        say(f"{words}, jerk {found[name]['jerk']:.2f} [{low:.2f}, {high:.2f}], held {found[name]['held_share']:.0%}")
    return found


def describe(name: str, found: dict, measure: str) -> str:
    """One line for the terminal."""
    low, high = found["success_rate_ci"]
    return (f"{name:12s} success {found['successes']:3d}/{found['episodes']} = {found['success_rate']:.0%} "
            f"[{low:.0%}, {high:.0%}], best {measure} {found['coverage']:.3f} "
            f"[{found['coverage_ci'][0]:.3f}, {found['coverage_ci'][1]:.3f}], {found['steps']:.0f} steps")


def write(out: Path, result: dict, runs: list[Run], engine: Engine, videos: int) -> None:
    """Writes OUT/closed_loop.json and, where videos are wanted, a strip of the best episode and videos of so many best
    and worst ones."""
    out.mkdir(parents=True, exist_ok=True)
    files.write_text(f"{out}/{RESULT}", json.dumps(result, indent=1, allow_nan=False) + "\n")
    if not videos:
        (out / STRIP).unlink(missing_ok=True)  # of episodes before these
        return
    (_, best), _ = episode_pictures.extremes(runs, 1)
    files.write_bytes(f"{out}/{STRIP}", episode_pictures.strip(*episode_pictures.seen_and_imagined(best, engine)))
    episode_pictures.write_videos(out, runs, engine, videos)


def main(_) -> None:
    args = flags.FLAGS
    if args.rerun:
        rerun_log.load()  # said before the episodes, not after
    restored = restore(args.workdir, args.step).of_dataset(args.dataset)
    simulation = Simulation.open(restored, args.task, args.episodes, args.batch, sampling=launch_flags.sampling(args))
    result, runs = evaluate(simulation, seed=args.seed, execute=args.execute, latency=args.latency,
                            overlap=args.overlap, baselines=args.baselines, pictures=args.rerun or args.videos > 0)
    out = Path(args.out or Path(args.workdir) / "closed_loop")
    write(out, result, runs, simulation.engine, args.videos)
    if args.rerun:
        episode_pictures.write_recordings(out, runs, simulation.engine, args.videos)
    if gain := result.get("against"):
        print(f"best {result['measure']} above {gain['policy']}: {gain['coverage']:+.3f} "
              f"[{gain['coverage_ci'][0]:+.3f}, {gain['coverage_ci'][1]:+.3f}]")
    print(f"written to {out}")


if __name__ == "__main__":  # flags are here so that importing this module beside another command defines none
    launch_flags.define_run()
    launch_flags.define_task()
    flags.DEFINE_integer("episodes", 50, "simulated episodes", lower_bound=1)
    flags.DEFINE_integer("seed", 1000, "of the first episode", lower_bound=0)
    flags.DEFINE_integer("execute", None, "actions of each chunk that are executed; default: all", lower_bound=1)
    flags.DEFINE_integer("latency", 0, "control steps that the model seems to take to answer", lower_bound=0)
    flags.DEFINE_integer("overlap", 2, "steps over which asynchronous chunks fade into each other", lower_bound=0)
    flags.DEFINE_integer("batch", 16, "episodes per step of the model", lower_bound=1)
    flags.DEFINE_list("baselines", list(BASELINES), "played beside the model; empty: none")
    flags.DEFINE_integer("videos", 2, "best and worst episodes that are written; 0, the fastest: no picture at all",
                         lower_bound=0)
    flags.DEFINE_bool("rerun", False, "the same episodes for Rerun's viewer too (extra: rerun)")
    flags.DEFINE_string("out", None, "directory to write; default: WORKDIR/closed_loop")
    launch_flags.define_sampling()
    launch_flags.run(main, CheckpointError, ModelError)
