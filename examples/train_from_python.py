"""Trains the quickstart's tiny model from Python, without a command line.

    python -m launch.record_pusht --out=.cache/pusht                        # records the data, once
    python examples/train_from_python.py runs/example [.cache/pusht]

A config is a plain nested dictionary: take one, change keys, hand it to an Experiment. If the folder already holds a
checkpoint, the run goes on from there. examples/roll_out.py and examples/serve.py use what this one leaves behind.
"""

import sys
from pathlib import Path

from configs import quickstart
from launch.setup.experiment import Experiment
from launch.train import train


def make_config(recorded: Path):
    """The tiny arm of the quickstart on that recording, with a few keys set otherwise."""
    config = quickstart.get_config("debug")
    config.data.datasets.pusht.path = str(recorded / "pusht_rlds")
    config.data.datasets.clips.path = str(recorded / "pusht_clips")
    config.data.holdout = 0.3  # so that a small recording, too, has episodes that training does not see
    config.train.update(steps=6, global_batch_size=8)
    return config


def main(workdir: str, recorded: str = ".cache/pusht") -> None:
    """Trains into `workdir`: checkpoints, metrics.jsonl, statistics.json."""
    experiment = Experiment(make_config(Path(recorded)))
    size = sum(parameter.size for parameter in experiment.model.shapes.values())
    print(f"{experiment.family.name}, {size:,} parameters")
    train(experiment, workdir)


if __name__ == "__main__":
    main(*sys.argv[1:])
