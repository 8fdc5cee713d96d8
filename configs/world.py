"""PushT as a world: imagined video is to obey the commands that it is given. So far it sees them, and does not obey.

    python -m launch.record_pusht --out=.cache/pusht_wander --task=wander --episodes=360
    python -m launch.train --config=configs/world.py --workdir=runs/world
    python -m launch.imagine --workdir=runs/world --task=pusht --starts=16
    python -m launch.imagine --workdir=runs/world --task=pusht-slide --policies=expert,expert:1,expert:2,...

The quickstart's model with decoupled noise (DreamZero-Flash): actions are often clean where video is noise. What an
expert does can be told from the picture, so these are episodes of an agent that wanders. Measured: docs/results.md.
"""

from ml_collections import ConfigDict

from configs import quickstart


def get_config(arg: str = "") -> ConfigDict:
    """`debug`: a tiny model for a few steps."""
    if arg not in ("", "debug"):
        raise ValueError(f"configs/world.py:{arg}: the only arm is 'debug'")
    c = quickstart.get_config(arg)
    del c.data.datasets.clips  # nobody acts in them
    c.data.datasets.pusht.path = ".cache/pusht_wander/pusht_rlds"
    c.noise.update(schedule="decoupled", video_alpha=1.0)
    c.loss.action_weight = 0.1
    if not arg:
        c.train.steps = 3000
    return c
