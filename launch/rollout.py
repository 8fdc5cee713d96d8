"""Closed-loop evaluation: the model acts in a simulator, beside policies that need no model (extra: sim).

    python -m launch.rollout --workdir=runs/quickstart [--task=pusht --episodes=50 --seed=1000 --execute=16 --out=DIR]
    python -m launch.rollout --workdir=DIR --task=button-press-topdown-v3-green --baselines=  # in other colours, alone

Episodes SEED, SEED + 1, ... run in parallel: the model is asked for a chunk for all of them at once, and sees in
return the frames that really came. The same seeds are given to `repeat_last`, `mean`, `random` and, as what can be
reached, to the scripted `expert` that recorded the training data. With --latency=4 the model also acts as if it took 4
control steps to answer, waiting for it and not (launch/simulation/asynchronous.py). Writes OUT/closed_loop.json
(default OUT: WORKDIR/closed_loop) and OUT/best_*.mp4, worst_*.mp4: what happened, beside what was imagined; with
--rerun also *.rrd of the same episodes (launch/simulation/rerun_log.py).
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
from launch.serving.servable import choose_robot
from launch.setup import flags as launch_flags
from launch.setup.restore import Restored, restore
from launch.simulation import asynchronous, closed_loop, rerun_log
from launch.simulation.asynchronous import Mode
from launch.simulation.closed_loop import Mean, ModelPolicy, Random, Run
from launch.simulation.simulators import choose_task
from world_model.training.checkpoint import CheckpointError

TRIVIAL = ("repeat_last", "mean", "random")
BASELINES = (*TRIVIAL, "expert")
PANEL, GAP = 256, 8  # pixels of a video's panels and between them


def evaluate(restored: Restored, *, episodes: int, seed: int, execute: int | None, batch: int,
             sampling: dict | None = None, latency: int = 0, overlap: int = 2, max_steps: int | None = None,
             task: str | None = None, baselines: Sequence[str] = BASELINES,
             say=print) -> tuple[dict, list[Run], Engine]:
    """(result as JSON values, the model's episodes, its engine). task: a name in launch/simulation/simulators.py;
    baselines: of BASELINES, played beside the model. Raises ValueError where the checkpoint drives no robot that has a
    simulator."""
    if unknown := set(baselines) - set(BASELINES):
        raise ValueError(f"--baselines={','.join(unknown)}: there are {', '.join(BASELINES)}")
    chosen = choose_task(task, {s["embodiment"] for s in restored.statistics.values() if s["action"]})
    robot = choose_robot(restored, chosen.embodiment, None)
    engine = Engine(restored, robot, sessions=episodes, batch_sizes=(batch,), sampling=sampling or {})
    horizon = robot.horizon
    execute = execute or horizon
    if execute > horizon:
        raise ValueError(f"--execute={execute}: the model predicts {horizon} actions at a time")
    instruction, seeds = chosen.instruction or robot.embodiment.instruction, range(seed, seed + episodes)
    fresh = functools.partial(chosen.make_runs, seeds, robot.layout.height, max_steps)
    policies: dict[str, tuple[closed_loop.Policy, int]] = {
        "model": (ModelPolicy(engine, instruction), execute), "repeat_last": (closed_loop.repeat_last, 1),
        "mean": (Mean(robot.statistics), 1), "random": (Random(robot.statistics, horizon), horizon),
        "expert": (closed_loop.expert, 1)}
    result: dict[str, Any] = {
        "task": chosen.name, "measure": chosen.measure, "step": restored.step, "seed": seed, "execute": execute,
        "sampling": restored.experiment.sampler_settings(**engine.sampling), "policies": {}}
    played = []
    for name in ("model", *baselines):
        (policy, count), began, runs = policies[name], time.monotonic(), fresh()
        closed_loop.play(policy, runs, count, render=name == "model")
        played = played or runs  # the model's alone: a world of Meta-World takes 20 MB
        found = result["policies"][name] = closed_loop.scores(runs) | {"seconds": time.monotonic() - began}
        say(describe(name, found, chosen.measure))
    if latency:
        result["latency"] = delayed(engine, instruction, latency, overlap, fresh, chosen.measure, say)
    if played_trivial := [name for name in TRIVIAL if name in baselines]:
        best = max(played_trivial, key=lambda name: result["policies"][name]["coverage"])
        result["against"] = {"policy": best} | closed_loop.paired_difference(
            result["policies"]["model"], result["policies"][best])
    result["interventions"] = dict(sum((run.interventions for run in played), collections.Counter()))
    gaps = [gap for run in played for gap in run.gaps]
    result["imagination_gap"] = float(np.mean(gaps)) if gaps else None
    return result, played, engine


def delayed(engine: Engine, instruction: str, latency: int, overlap: int, fresh, measure: str, say) -> dict:
    """The model with a latency of so many control steps, in every way of living with it. fresh: makes the episodes."""
    found = {}
    for name, mode in {"synchronous": Mode(latency, asynchronous=False),
                       "asynchronous": Mode(latency, overlap=overlap),
                       "not_grounded": Mode(latency, overlap=overlap, grounded=False)}.items():
        runs, policy = fresh(), ModelPolicy(engine, instruction)
        executors = asynchronous.play(policy, runs, mode, engine.robot.horizon)
        found[name] = dataclasses.asdict(mode) | closed_loop.scores(runs) | asynchronous.smoothness(executors)
        found[name]["against_synchronous"] = closed_loop.paired_difference(found[name], found["synchronous"])
        low, high = found[name]["jerk_ci"]
        say(f"{describe(name, found[name], measure)}, jerk {found[name]['jerk']:.2f} [{low:.2f}, {high:.2f}], "
            f"held {found[name]['held_share']:.0%}")
    return found


def describe(name: str, found: dict, measure: str) -> str:
    """One line for the terminal."""
    low, high = found["success_rate_ci"]
    return (f"{name:12s} success {found['successes']:3d}/{found['episodes']} = {found['success_rate']:.0%} "
            f"[{low:.0%}, {high:.0%}], best {measure} {found['coverage']:.3f} "
            f"[{found['coverage_ci'][0]:.3f}, {found['coverage_ci'][1]:.3f}], {found['steps']:.0f} steps")


def extremes(runs: list[Run], count: int) -> list[tuple[str, Run]]:
    """The episodes with most and with least coverage, `count` of each, with names for their files."""
    ranked = sorted(runs, key=lambda run: (-max(run.episode.coverage), len(run.actions)))
    return [(f"{kind}_{run.seed}", run) for kind, chosen in (("best", ranked[:count]), ("worst", ranked[-count:]))
            for run in chosen]


def write_videos(out: Path, runs: list[Run], engine: Engine, count: int) -> None:
    """OUT/NAME.mp4 of `extremes`."""
    from data_pipelines.simulators.recorder import mp4

    for name, run in extremes(runs, count):
        seen, imagined = seen_and_imagined(run, engine)
        video = side_by_side(seen) if imagined is None else side_by_side(seen, imagined)
        files.write_bytes(f"{out}/{name}.mp4", mp4(video, engine.embodiment.rate))


def write_recordings(out: Path, runs: list[Run], engine: Engine, count: int) -> None:
    """OUT/NAME.rrd of `extremes`. Raises ValueError where Rerun is not installed."""
    for name, run in extremes(runs, count):
        _, imagined = seen_and_imagined(run, engine)
        rerun_log.write(out / f"{name}.rrd", run, engine.embodiment, imagined)


def seen_and_imagined(run: Run, engine: Engine) -> tuple[np.ndarray, np.ndarray | None]:
    """Both uint8 [steps, H, W, 3]: canvases, and as imagined when the chunk was chosen (the first frame before); None
    where the family imagines no video."""
    seen = np.stack([engine.robot.canvas({view: frame[None] for view, frame in views.items()})[0]
                     for views in run.frames])
    if not engine.imagines_video:
        return seen, None
    imagined, stride = seen.copy(), engine.robot.layout.frame_stride
    for begin, latents in run.imagined:
        frames = np.repeat(engine.decode(latents), stride, axis=0)
        # Frame i of a block is that of the step (i + 1) stride after its first; between two, the coming one is shown.
        end = min(len(seen), begin + 1 + len(frames))
        imagined[begin + 1:end] = frames[:end - begin - 1]
    return seen, imagined


def side_by_side(*videos: np.ndarray) -> np.ndarray:
    """Videos uint8 [steps, H, W, 3] in panels of at least PANEL pixels, with a white gap between two."""
    panels = [x.repeat(-(-PANEL // x.shape[1]), 1).repeat(-(-PANEL // x.shape[2]), 2) for x in videos]
    gap = np.full((*panels[0].shape[:2], GAP, 3), 255, np.uint8)
    return np.concatenate([panels[0], *(part for panel in panels[1:] for part in (gap, panel))], axis=2)


def main(_) -> None:
    """The command."""
    args = flags.FLAGS
    if args.rerun:
        rerun_log.load()  # said before the episodes, not after
    result, runs, engine = evaluate(restore(args.workdir, args.step), episodes=args.episodes, seed=args.seed,
                                    execute=args.execute, batch=args.batch, sampling=launch_flags.sampling(args),
                                    latency=args.latency, overlap=args.overlap, task=args.task,
                                    baselines=args.baselines)
    out = Path(args.out or Path(args.workdir) / "closed_loop")
    out.mkdir(parents=True, exist_ok=True)
    files.write_text(f"{out}/closed_loop.json", json.dumps(result, indent=1, allow_nan=False) + "\n")
    if args.rerun:
        write_recordings(out, runs, engine, args.videos)
    write_videos(out, runs, engine, args.videos)
    if gain := result.get("against"):
        print(f"best {result['measure']} above {gain['policy']}: {gain['coverage']:+.3f} "
              f"[{gain['coverage_ci'][0]:+.3f}, {gain['coverage_ci'][1]:+.3f}]")
    print(f"written to {out}")


if __name__ == "__main__":  # flags are here so that importing this module beside another command defines none
    launch_flags.define_run()
    flags.DEFINE_string("task", None, "a simulated task; default: the first for the model's robot")
    flags.DEFINE_integer("episodes", 50, "simulated episodes", lower_bound=1)
    flags.DEFINE_integer("seed", 1000, "of the first episode", lower_bound=0)
    flags.DEFINE_integer("execute", None, "actions of each chunk that are executed; default: all", lower_bound=1)
    flags.DEFINE_integer("latency", 0, "control steps that the model seems to take to answer", lower_bound=0)
    flags.DEFINE_integer("overlap", 2, "steps over which asynchronous chunks fade into each other", lower_bound=0)
    flags.DEFINE_integer("batch", 16, "episodes per step of the model", lower_bound=1)
    flags.DEFINE_list("baselines", list(BASELINES), "played beside the model; empty: none")
    flags.DEFINE_integer("videos", 2, "best and worst episodes that are written", lower_bound=0)
    flags.DEFINE_bool("rerun", False, "the same episodes for Rerun's viewer too (extra: rerun)")
    flags.DEFINE_string("out", None, "directory to write; default: WORKDIR/closed_loop")
    launch_flags.define_sampling()
    launch_flags.run(main, CheckpointError, ModelError)
