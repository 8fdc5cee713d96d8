"""The main job from nothing to a report: record, train, kill, resume, evaluate, act, export, check, show.

    python -m launch.quickstart --config=configs/quickstart.py --workdir=runs/quickstart

On a GPU it runs with deterministic kernels, without which a resumed run differs by rounding.
The training process is killed (kill -9) once two checkpoints are whole. The second is put aside, the run resumes
from the first, and when it comes past the same step again both are compared bit for bit.
"""

import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from absl import flags

from launch import checkpoint as checkpoint_command
from launch import evaluate, export, report, rollout
from launch.setup import flags as launch_flags
from launch.setup.restore import Restored, restore
from launch.simulation.simulators import Simulation
from world_model import kinds
from world_model.training import checkpoint

RECORDINGS = Path(".cache/pusht_slide")  # where configs/quickstart.py looks for its data
TASK, EPISODES = "slide", 360  # what is recorded, and then done by the model
ACTED, EXECUTED = 30, 8  # episodes, and commands of each chunk before the model looks again
POLL_SECONDS = 0.2


def quickstart(config, workdir: Path, config_args: list[str]) -> dict:
    """Runs everything in order and returns the summary. Raises CalledProcessError where a command fails."""
    compared, kept = 2 * config.checkpoint.every, config.checkpoint.keep_every
    if not kept or compared % kept:
        raise ValueError(f"checkpoint.keep_every = {kept}: the runs are compared at step {compared} (twice "
                         f"checkpoint.every) after the end, so keep_every must divide it")
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_gpu_deterministic_ops=true"
    began = time.monotonic()
    stage = Stages()
    recorded = any(Path(dataset.path).parent == RECORDINGS for dataset in config.data.datasets.values())
    if recorded:
        stage("record PushT episodes and action-free clips")
        command("launch.record_pusht", f"--out={RECORDINGS}", f"--task={TASK}", f"--episodes={EPISODES}")
    stage("train, until the process is killed")
    shutil.rmtree(workdir, ignore_errors=True)
    train = [*config_args, f"--workdir={workdir}"]
    aside = train_and_kill(train, workdir, config.checkpoint.every)
    stage("resume, and train to the end")
    command("launch.train", *train)
    differences = checkpoint_command.diff(workdir, aside, compared, compared)
    print("resumed run equals the killed one bit for bit" if not differences else "\n".join(differences[:10]))
    stage("evaluate on held-out episodes")
    restored = restore(workdir)
    evaluation, arrays = evaluate.evaluate(restored)
    evaluate.write(workdir, evaluation, arrays)
    print(evaluate.describe(evaluation))
    if recorded:
        stage("act in the simulator")
        act(restored, workdir / "closed_loop", min(ACTED, config.evaluate.windows))
    stage("export to PyTorch and compare")
    shutil.rmtree(workdir / "export", ignore_errors=True)
    parity = export.export(restored, workdir / "export")
    print(f"largest difference from the {parity['compared_with']}: {parity['max']:.3g}")
    stage("report")
    page = report.report(workdir, seconds=round(time.monotonic() - began, 1), resume_bitwise=not differences,
                         export_max_abs_diff=parity["max"] if "PyTorch" in parity["compared_with"] else None)
    stage(f"done: open {page}")
    return kinds.read(page.parent / "summary.json", kinds.MAP)


class Stages:
    """Headlines with the time since the start."""

    def __init__(self):
        self._began, self._count = time.monotonic(), itertools.count(1)

    def __call__(self, what: str) -> None:
        print(f"\n== {next(self._count)}. {what} ({time.monotonic() - self._began:.0f} s)", flush=True)


def command(module: str, *args: str) -> None:
    """Runs `python -m module args` to its end."""
    subprocess.run([sys.executable, "-m", module, *args], check=True)


def act(restored: Restored, out: Path, episodes: int) -> None:
    """Lets the model do the recorded task in fresh episodes, beside policies without a model."""
    simulation = Simulation.open(restored, f"pusht-{TASK}", episodes, episodes)
    played = rollout.evaluate(simulation, seed=1000, execute=EXECUTED, baselines=("repeat_last", "random", "expert"))
    rollout.write(out, *played, simulation.engine, videos=1)


def train_and_kill(args: list[str], workdir: Path, every: int) -> Path:
    """Starts the training, kills it once the checkpoint of step 2 * every is whole, and puts that one aside."""
    process = subprocess.Popen([sys.executable, "-m", "launch.train", *args])
    directory = workdir / "checkpoints"
    try:
        while 2 * every not in (checkpoint.steps(directory) if directory.is_dir() else []):
            if process.poll() is not None:
                raise subprocess.CalledProcessError(process.returncode, "launch.train")
            time.sleep(POLL_SECONDS)
    finally:
        if process.poll() is None:
            os.kill(process.pid, signal.SIGKILL)
            process.wait()
    print(f"killed with SIGKILL after step {2 * every}; going back to step {every}", flush=True)
    aside = workdir / "killed"
    (aside / "checkpoints").mkdir(parents=True)
    for step in checkpoint.steps(directory):
        if step > every:
            shutil.move(directory / str(step), aside / "checkpoints" / str(step))
    return aside


def main(_) -> None:
    """The command; its exit code says whether the machinery worked, the report how well the model does."""
    args = [arg for arg in sys.argv[1:] if arg.lstrip("-").startswith("config")]
    summary = quickstart(flags.FLAGS.config, Path(flags.FLAGS.workdir), args)
    print(json.dumps(summary, indent=1))
    if not summary["resume_bitwise"]:
        sys.exit("quickstart: the resumed run differs from the killed one")


if __name__ == "__main__":  # flags are here so that importing this module beside another command defines none
    launch_flags.define_config()
    flags.DEFINE_string("workdir", None, "directory of the run; emptied first")
    flags.mark_flags_as_required(["config", "workdir"])
    launch_flags.run(main, checkpoint.CheckpointError)
