"""Normalisation statistics of one million steps of 14 dimensions on disk; prints one JSON line.

    python -m benchmarks.statistics [--steps=1000000]

The steps are LeRobot v2.1 tables (3,333 files of 300 steps). Actions are relative to the state at the start of every
possible block of 24 actions, which makes about 24 relative actions a step. The target is 20 s on two cores; where
others use them too, look at cpu_seconds.
"""

import json
import resource
import tempfile
import time
from pathlib import Path

from absl import app, flags

from benchmarks import synthetic_lerobot
from data_pipelines.dataset import Dataset
from data_pipelines.robots.embodiments import Dimension, Embodiment
from data_pipelines.sources import make_source
from data_pipelines.statistics.compute import compute_statistics
from world_model.batch import Layout

_STEPS = flags.DEFINE_integer("steps", 1_000_000, "recorded steps", lower_bound=300)
LAYOUT = Layout(frames=33, height=352, width=640, frames_per_block=2, actions_per_block=24, states_per_block=1)
ROBOT = Embodiment(
    name="arms", id=1, views=("top",), view_layout="single", rate=synthetic_lerobot.RATE,
    state=tuple(Dimension(f"joint_{i}", i) for i in range(14)),
    action=tuple(Dimension(f"joint_{i}", i, relative_to=f"joint_{i}") for i in range(14)))


def main(_) -> None:
    """Runs the command."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "dataset"
        synthetic_lerobot.write(path, episodes=_STEPS.value // 300, steps=300, videos=False)
        source = make_source("lerobot", "arms", path=str(path), images={"top": "observation.images.top"},
                             state="observation.state", action="action")
        began, cpu = time.perf_counter(), time.process_time()
        found = compute_statistics(Dataset("arms", source, ROBOT), LAYOUT)
        seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
    print(json.dumps({
        "benchmark": "statistics", "steps": found["state"]["count"], "relative_actions": found["action"]["count"],
        "seconds": round(seconds, 2), "cpu_seconds": round(cpu, 2), "rank_error": found["action"]["rank_error"],
        "peak_memory_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024}))


if __name__ == "__main__":
    app.run(main)
