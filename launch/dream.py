"""Writes imagined episodes with actions as a dataset to train on: the flywheel (extras: sim, data).

    python -m launch.dream --workdir=DIR --out=.cache/dreams --task=pusht-slide [--episodes=64 --blocks=8]

From first pictures of the simulated task and its prompt (or --prompt) the model imagines videos, which its inverse
dynamics label with actions; an episode ends before the first block whose actions lead elsewhere by more than
--most_apart grey levels. States follow from the commands as they did in the recordings that the model learned from
(launch/simulation/dreaming.py). OUT is a LeRobot v3.0 dataset; meta/imagined.json says which
weights, seeds and threshold it comes from. The command prints the entry of a config's data.datasets that mixes it into
training.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from absl import flags

from data_pipelines import imagined
from data_pipelines.episode import Episode
from data_pipelines.robots.embodiments import get_embodiment
from launch.serving.engine import ModelError
from launch.setup import flags as launch_flags
from launch.setup.restore import Restored, restore
from launch.simulation import dreaming, world
from launch.simulation.closed_loop import Run
from launch.simulation.simulators import TASKS, Simulation
from world_model.training import checkpoint
from world_model.training.checkpoint import CheckpointError

BATCH = 16  # episodes at once


def write_dreams(simulation: Simulation, out: Path, *, episodes: int, blocks: int, most_apart: float, seed: int = 0,
                 prompt: str | None = None, say=print) -> dict:
    """The provenance of what was written. Raises FileExistsError where OUT is there, ValueError where the model cannot
    dream or nothing is left, CheckpointError where its weights have no hash."""
    if out.exists():
        raise FileExistsError(f"{out} is there already: choose another directory")
    engine, robot, instruction = simulation.engine, simulation.engine.embodiment, prompt or simulation.instruction
    world.check(engine)
    follow = dreaming.fit_states(recordings(simulation))
    provenance = about(simulation.restored) | simulation.settings(seed) | {
        "episodes_tried": episodes, "blocks": blocks, "most_apart": most_apart}
    runs: list[Run] = []
    for first in range(seed, seed + episodes, engine.sessions):
        batch = simulation.make_runs(range(first, min(first + engine.sessions, seed + episodes)))
        dreaming.dream(engine, instruction, batch, blocks, follow)
        runs += batch
        say(f"{len(runs)} of {episodes} imagined")
    found = {run.seed: dreaming.kept(engine, run, instruction, most_apart) for run in runs}
    provenance["each"] = [{"seed": run.seed, "apart": np.round(run.gaps, 3).tolist(),
                           "steps": len(episode.frames) if (episode := found[run.seed]) else 0} for run in runs]
    written = [episode for episode in found.values() if episode]
    if not written:
        least = min(run.gaps[0] for run in runs)
        raise ValueError(f"--most_apart={most_apart:g} leaves none of {episodes} episodes: their first blocks are "
                         f"{least:.2f} grey levels apart at least")
    view, = robot.views
    imagined.write(out, written, view=view, rate=robot.rate, provenance=provenance)
    return provenance


def recordings(simulation: Simulation) -> Iterator[Episode]:
    """The episodes of the robot that the model learned from. Raises ValueError where they are not there any more."""
    robot = simulation.engine.embodiment.name
    for dataset in simulation.restored.data.training:
        if dataset.embodiment.name == robot:
            yield from (dataset.source[int(i)] for i in dataset.episodes)


def about(restored: Restored) -> dict:
    """Which weights dream. Raises CheckpointError where the checkpoint has no hashes."""
    directory = restored.workdir / "checkpoints"
    meta = checkpoint.read_json(directory, restored.step, "meta")
    weights = checkpoint.weights_hash(meta, restored.weights == "average")
    if not weights:
        raise CheckpointError(f"{directory}, step {restored.step}: holds no hashes (checkpoint.hashes = False): its "
                              "dreams could not say whose they are")
    return {"weights": weights, "workdir": str(restored.workdir), "step": restored.step, "family": meta["family"]}


def describe(provenance: dict, out: Path) -> str:
    """For the terminal: how much was kept, and how it is trained on."""
    blocks = [x for each in provenance["each"] for x in each["apart"]]
    steps, robot = [each["steps"] for each in provenance["each"]], TASKS[provenance["task"]].embodiment
    view, = get_embodiment(robot).views
    entry = {"source": "lerobot", "path": str(out), "embodiment": robot, "weight": 1.0,
             "images": {view: imagined.CAMERA.format(view)}, "state": "observation.state", "action": "action"}
    low, high = np.quantile(blocks, [0.1, 0.9])
    return (f"{sum(map(bool, steps))} of {len(steps)} episodes kept, {sum(steps)} steps; blocks are "
            f"{np.mean(blocks):.2f} grey levels from what their actions lead to, 80% of them {low:.2f} to {high:.2f}\n"
            f"c.data.datasets.dreams = ConfigDict({entry})")


def main(_) -> None:
    """The command."""
    args = flags.FLAGS
    restored = restore(args.workdir, args.step).of_dataset(args.dataset)
    out = Path(args.out)
    simulation = Simulation.open(restored, args.task, BATCH, BATCH, sampling=launch_flags.sampling(args))
    provenance = write_dreams(simulation, out, episodes=args.episodes, blocks=args.blocks, most_apart=args.most_apart,
                              seed=args.seed, prompt=args.prompt)
    print(describe(provenance, out))


if __name__ == "__main__":  # flags are here so that importing this module beside another command defines none
    launch_flags.define_run()
    flags.DEFINE_string("out", None, "directory to write")
    flags.mark_flag_as_required("out")
    launch_flags.define_task()
    flags.DEFINE_string("prompt", None, "what the model is asked to do; default: the task's instruction")
    flags.DEFINE_integer("episodes", 64, "episodes to imagine", lower_bound=1)
    flags.DEFINE_integer("blocks", 8, "blocks of an episode", lower_bound=1)
    flags.DEFINE_float("most_apart", 8.0, "grey levels between a block and what its actions lead to", lower_bound=0)
    flags.DEFINE_integer("seed", 5000, "of the first episode", lower_bound=0)
    launch_flags.define_sampling()
    launch_flags.run(main, CheckpointError, ModelError)
