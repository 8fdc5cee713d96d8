"""A tiny config on the LeRobot fixtures, as a DROID robot with the front camera twice, and its episodes again without
actions."""

from pathlib import Path

from ml_collections import ConfigDict

from configs import quickstart

FIXTURE = str(Path(__file__).parent / "fixtures/lerobot_v30")


def get_config() -> ConfigDict:
    """Two datasets, 9 frames of 48 x 64, 24 actions per block."""
    c = quickstart.get_config("debug")
    c.data.datasets = ConfigDict({
        "discs": {"source": "lerobot", "path": FIXTURE, "embodiment": "droid", "weight": 3.0,
                  "images": {"exterior_1": "observation.images.front", "exterior_2": "observation.images.front",
                             "wrist": "observation.images.wrist"},
                  "state": "observation.state", "action": "action"},
        "clips": {"source": "lerobot", "path": FIXTURE, "embodiment": "video_only", "weight": 1.0,
                  "images": {"image": "observation.images.front"}}})
    c.layout.update(frames=9, height=48, width=64, frames_per_block=1, actions_per_block=12)
    c.model.text_length = 32
    c.data.holdout = 0.0
    c.encoders.fit_clips = 4
    c.train.update(steps=4, global_batch_size=8, log_every=1)
    c.checkpoint.every = 2
    return c
