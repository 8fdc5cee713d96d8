"""A model as a world, against the simulator: does imagination obey actions, and does it rank policies? (extra: sim)

    python -m launch.imagine --workdir=runs/quickstart [--task=pusht --starts=16 --seed=2000 --out=DIR]
    python -m launch.imagine --workdir=DIR --policies=expert,expert:1,expert:2,expert:4,random,mean,DIR@250,DIR@500

Without --policies, the model imagines from each start what follows four chunks of actions that it is given, and each is
put beside the simulator's replay (launch/simulation/obedience.py). OUT/imagine.json (default OUT: WORKDIR/imagine) has
the share of right choices with its interval, 0.5 being chance; OUT/imagine.png, for the first starts, the last frame of
every chunk, as it came above, as it was imagined below.

With them, each policy is tried inside the model and in the simulator (launch/simulation/ranking.py): OUT/ranking.json
holds both scores of each, their rank correlation with its interval, and what it would be if the simulator's own
pictures were scored; OUT/ranking.png, for the first start, the last frame of every policy, likewise.
"""

import functools
from pathlib import Path

import numpy as np
from absl import flags

from data_pipelines.storage import files
from launch.reporting import figures
from launch.serving.engine import ModelError
from launch.setup import flags as launch_flags
from launch.setup.restore import restore
from launch.simulation import candidates, obedience, ranking
from launch.simulation.obedience import CHUNKS, Start
from launch.simulation.ranking import Tried
from launch.simulation.simulators import Simulation
from launch.simulation.world import check
from world_model.training.checkpoint import CheckpointError

SHOWN = 4  # starts in the picture
GAP = 4  # pixels between two


def evaluate(simulation: Simulation, seeds: range, say=print) -> tuple[dict, list[Start]]:
    """(result as JSON values, the start of every seed). Raises ValueError where the model imagines nothing."""
    found = []
    for start in obedience.measure(simulation.engine, simulation.instruction, simulation.make_runs, seeds):
        found.append(start)
        say(f"start {start.seed}: {sum(obedience.choices(start)):g} of {len(obedience.choices(start))} right")
    result = obedience.accuracy(found) | simulation.settings(seeds.start) | {
        "chunks": list(CHUNKS),
        "each": [{"seed": start.seed, "distance": start.distance.round(5).tolist()} for start in found]}
    return result, found


def rank(simulation: Simulation, policies: list[str], seeds: range, blocks: int, say=print) -> tuple[dict, list[Tried]]:
    """(result as JSON values, every policy). Raises as `evaluate`, and where `candidates.make` does."""
    world, instruction, measure = simulation.engine, simulation.instruction, simulation.task.measure
    check(world)
    tried = ranking.rank(
        world, instruction, candidates.make(policies, world, instruction),
        functools.partial(simulation.make_runs, max_steps=blocks * world.robot.horizon),
        seeds, blocks, lambda one: say(describe_policy(one, measure)))
    truth = [one.simulated["coverage"] for one in tried]
    return {"imagined": ranking.correlations([one.score for one in tried], truth),
            "true_pictures": ranking.correlations([one.read for one in tried], truth),
            "starts": len(seeds), "blocks": blocks, "measure": measure,
            "policies": {one.name: one.simulated | {"score": one.score, "score_of_true_pictures": one.read}
                         for one in tried}} | simulation.settings(seeds.start), tried


def picture(rows: list[np.ndarray]) -> bytes:
    """PNG of rows of frames, each uint8 [n, H, W, 3]."""
    scale = max(1, 128 // rows[0].shape[1])
    return figures.png(figures.grid(rows, GAP).repeat(scale, axis=0).repeat(scale, axis=1))


def chunk_rows(starts: list[Start]) -> list[np.ndarray]:
    """A column per chunk and two rows per start, replay above and imagination below."""
    return [video[:, -1] for start in starts[:SHOWN] for video in (start.replays, start.imagined)]


def policy_rows(tried: list[Tried]) -> list[np.ndarray]:
    """A column per policy, the simulator above and imagination below."""
    return [np.stack([one.pictures[0, -1] for one in tried]), np.stack([one.imagined[0, -1] for one in tried])]


def describe(result: dict) -> str:
    """A sentence for the terminal."""
    low, high = result["interval"]
    return (f"imagination follows the actions in {result['accuracy']:.0%} [{low:.0%}, {high:.0%}] of "
            f"{result['choices']} choices from {result['starts']} starts; chance is 50%"
            + ("" if result["obeys"] else ": not shown to obey them" if result["sees_actions"] else
               ": given actions do not reach what it imagines, which is denoised before them"))


def describe_policy(one: Tried, measure: str) -> str:
    """One line for the terminal."""
    found = one.simulated
    return (f"{one.name:30s} simulator: {found['successes']}/{found['episodes']} solved, best {measure} "
            f"{found['coverage']:.3f}, read off its pictures {one.read:.3f}; imagined: {one.score:.3f}")


def describe_ranking(result: dict) -> str:
    """Two lines for the terminal."""
    def words(found: dict) -> str:
        return ", ".join(f"{name} {of['value']:+.2f} [{of['interval'][0]:+.2f}, {of['interval'][1]:+.2f}]"
                         for name, of in found.items())

    shown = all(of["interval"][0] > 0 for of in result["imagined"].values())
    return (f"rank correlation of imagined scores with the simulator's {result['measure']}, {len(result['policies'])} "
            f"policies: {words(result['imagined'])}{'' if shown else ': not shown to rank them'}\n"
            f"of scores of the simulator's own pictures: {words(result['true_pictures'])}")


def main(_) -> None:
    args = flags.FLAGS
    restored, sampling = restore(args.workdir, args.step).of_dataset(args.dataset), launch_flags.sampling(args)
    at_once, seeds = args.starts if args.policies else 1, range(args.seed, args.seed + args.starts)
    simulation = Simulation.open(restored, args.task, at_once, at_once, sampling=sampling, forward=True)
    if args.policies:
        result, tried = rank(simulation, args.policies, seeds, args.blocks)
        name, rows, words = "ranking", policy_rows(tried), describe_ranking(result)
    else:
        result, starts = evaluate(simulation, seeds)
        name, rows, words = "imagine", chunk_rows(starts), describe(result)
    out = Path(args.out or Path(args.workdir) / "imagine")
    out.mkdir(parents=True, exist_ok=True)
    files.write_json(f"{out}/{name}.json", result)
    files.write_bytes(f"{out}/{name}.png", picture(rows))
    print(f"{words}\nwritten to {out}")


if __name__ == "__main__":  # flags are here so that importing this module beside another command defines none
    launch_flags.define_run()
    launch_flags.define_task()
    flags.DEFINE_integer("starts", 16, "starting states", lower_bound=2)
    flags.DEFINE_integer("seed", 2000, "of the first starting state", lower_bound=0)
    flags.DEFINE_list("policies", [], f"to be ranked, at least {candidates.LEAST}: {candidates.NAMES}")
    flags.DEFINE_integer("blocks", 10, "blocks of commands that each policy is tried for", lower_bound=1)
    flags.DEFINE_string("out", None, "directory to write; default: WORKDIR/imagine")
    launch_flags.define_sampling()
    launch_flags.run(main, CheckpointError, ModelError)
