"""Many recordings or few, for equally many steps, at laptop scale: all of PushT's, a quarter, a twentieth.

    python -m launch.sweep --config=configs/ablations/diversity.py --out=runs/diversity --seeds=0,1,2

Published: as many hours of varied tasks teach more than of repeated ones (50% against 33%; DreamZero, arXiv 2602.15922,
table 4). Here a task's recordings differ by where the block and the pusher begin; a twentieth of them is seen twenty
times as often. Held-out recordings are the same for all.
"""

from ml_collections import ConfigDict

from configs import quickstart


def get_config(arg: str = "") -> ConfigDict:
    """The quickstart with the share of its recordings."""
    c = quickstart.get_config(arg)
    c.data.datasets.pusht.share = 1.0  # of the recordings, trained on
    return c


def get_sweep() -> list[dict]:
    """The base first."""
    share = "data.datasets.pusht.share"
    return [{"name": "all"}, {"name": "quarter", share: 0.25}, {"name": "twentieth", share: 0.05}]
