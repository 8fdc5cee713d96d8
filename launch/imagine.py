"""Does imagination obey actions? Measured in a simulator's own starting states (extra: sim).

    python -m launch.imagine --workdir=runs/quickstart [--task=pusht --starts=16 --seed=2000 --out=DIR]

From each start the model imagines what follows four chunks of actions that it is given, and each is put beside the
simulator's replay (launch/simulation/obedience.py). Writes OUT/imagine.json (default OUT: WORKDIR/imagine), the share
of right choices with its interval, 0.5 being chance, and OUT/imagine.png: for the first starts the last frame of every
chunk, as it came above, as it was imagined below.
"""

import functools
import io
from pathlib import Path

import numpy as np
from absl import flags
from PIL import Image

from data_pipelines.storage import files
from launch.serving.engine import Engine, ModelError
from launch.serving.servable import choose_robot
from launch.setup import flags as launch_flags
from launch.setup.restore import Restored, restore
from launch.simulation import obedience
from launch.simulation.obedience import CHUNKS, Start
from launch.simulation.simulators import choose_task
from world_model.training.checkpoint import CheckpointError

SHOWN = 4  # starts in the picture
GAP = 4  # pixels between two


def evaluate(restored: Restored, *, starts: int, seed: int, task: str | None = None, sampling: dict | None = None,
             say=print) -> tuple[dict, list[Start]]:
    """(result as JSON values, every start). Raises ValueError where the model drives no simulated robot, or imagines
    nothing."""
    chosen = choose_task(task, {s["embodiment"] for s in restored.statistics.values() if s["action"]})
    robot = choose_robot(restored, chosen.embodiment, None)
    engine = Engine(restored, robot, sessions=1, batch_sizes=(1,), sampling=sampling or {})
    fresh = functools.partial(chosen.make_runs, image_size=robot.layout.height)
    found = []
    for start in obedience.measure(engine, chosen.instruction or robot.embodiment.instruction, fresh,
                                   range(seed, seed + starts)):
        found.append(start)
        say(f"start {start.seed}: {sum(obedience.choices(start)):g} of {len(obedience.choices(start))} right")
    result = obedience.accuracy(found) | {
        "task": chosen.name, "step": restored.step, "seed": seed, "chunks": list(CHUNKS),
        "sampling": restored.experiment.sampler_settings(**engine.sampling),
        "each": [{"seed": start.seed, "distance": start.distance.round(5).tolist()} for start in found]}
    return result, found


def picture(starts: list[Start]) -> bytes:
    """PNG: a column per chunk and two rows per start, replay above and imagination below."""
    def row(frames: np.ndarray) -> np.ndarray:
        return np.concatenate([np.pad(frame, ((0, GAP), (0, GAP), (0, 0)), constant_values=255) for frame in frames], 1)

    rows = [row(video[:, -1]) for start in starts[:SHOWN] for video in (start.replays, start.imagined)]
    image = Image.fromarray(np.concatenate(rows))
    buffer, scale = io.BytesIO(), max(1, 128 // starts[0].replays.shape[2])
    image.resize((image.width * scale, image.height * scale), Image.Resampling.NEAREST).save(buffer, "PNG")
    return buffer.getvalue()


def describe(result: dict) -> str:
    """A sentence for the terminal."""
    low, high = result["interval"]
    return (f"imagination follows the actions in {result['accuracy']:.0%} [{low:.0%}, {high:.0%}] of "
            f"{result['choices']} choices from {result['starts']} starts; chance is 50%"
            + ("" if result["obeys"] else ": not shown to obey them" if result["sees_actions"] else
               ": given actions do not reach what it imagines, which is denoised before them"))


def main(_) -> None:
    """The command."""
    args = flags.FLAGS
    result, starts = evaluate(restore(args.workdir, args.step), starts=args.starts, seed=args.seed, task=args.task,
                              sampling=launch_flags.sampling(args))
    out = Path(args.out or Path(args.workdir) / "imagine")
    out.mkdir(parents=True, exist_ok=True)
    files.write_json(f"{out}/imagine.json", result)
    files.write_bytes(f"{out}/imagine.png", picture(starts))
    print(f"{describe(result)}\nwritten to {out}")


if __name__ == "__main__":  # flags are here so that importing this module beside another command defines none
    launch_flags.define_run()
    flags.DEFINE_string("task", None, "a simulated task; default: the first for the model's robot")
    flags.DEFINE_integer("starts", 16, "starting states", lower_bound=2)
    flags.DEFINE_integer("seed", 2000, "of the first starting state", lower_bound=0)
    flags.DEFINE_string("out", None, "directory to write; default: WORKDIR/imagine")
    launch_flags.define_sampling()
    launch_flags.run(main, CheckpointError, ModelError)
