"""Recordings of episodes for Rerun's viewer: cameras, imagined frames, state and actions by step (extra: rerun).

    python -m launch.rollout --workdir=runs/quickstart --rerun
    rerun runs/quickstart/closed_loop/best_1003.rrd
"""

from pathlib import Path

import numpy as np

from data_pipelines.robots.embodiments import Embodiment
from launch.simulation.closed_loop import Run

TIMELINE = "step"


def load():
    """Imports the package. Raises ValueError where it is not installed."""
    try:
        import rerun
    except ModuleNotFoundError as error:
        raise ValueError("recordings for Rerun need the package 'rerun-sdk': pip install -e '.[rerun]'") from error
    return rerun


def write(path: Path, run: Run, embodiment: Embodiment, imagined: np.ndarray | None) -> None:
    """Writes one episode. imagined: uint8 [steps + 1, H, W, 3], what the model expected to see at each step, if it did.

    Each step shows what was seen and measured, and the action that was chosen then; the last one has no action. Raises
    ValueError without the package.
    """
    rerun = load()
    recording = rerun.RecordingStream("wamax", recording_id=f"wamax_{path.stem}")
    recording.save(path)
    for part, dimensions in (("state", embodiment.state), ("action", embodiment.action)):
        recording.log(part, rerun.SeriesLines(names=[d.name for d in dimensions]), static=True)
    for step, (views, state) in enumerate(zip(run.frames, run.states, strict=True)):
        recording.set_time(TIMELINE, sequence=step)
        for view, frame in views.items():
            recording.log(f"camera/{view}", rerun.Image(frame))
        if imagined is not None:
            recording.log("imagined", rerun.Image(imagined[step]))
        recording.log("state", rerun.Scalars(state))
        if step < len(run.actions):
            recording.log("action", rerun.Scalars(run.actions[step]))
    recording.disconnect()  # the file is whole
