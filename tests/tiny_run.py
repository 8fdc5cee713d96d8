"""A run of four steps on a recording of six episodes and three clips, made anew."""

from pathlib import Path

from ml_collections import ConfigDict

from configs import quickstart
from data_pipelines.simulators.pusht import dataset


def config(recorded: Path) -> ConfigDict:
    """Its config, 32 pixels high and two blocks long; records into that folder."""
    assert dataset.write(recorded, episodes=6, clips=3, seed=0, image_size=32, workers=1)
    c = quickstart.get_config("debug")
    c.layout.update(frames=9, height=32, width=32, frames_per_block=1, actions_per_block=4)
    c.data.datasets.pusht.path, c.data.datasets.clips.path = (str(recorded / d) for d in ("pusht_rlds", "pusht_clips"))
    c.data.holdout, c.encoders.fit_clips, c.data.datasets.pusht.weight = 0.3, 4, 3.0
    c.train.update(steps=4, global_batch_size=8, log_every=1)
    return c
