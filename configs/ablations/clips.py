"""Share of action-free video in the mixture, at laptop scale: none, a tenth (the quickstart), a half.

    python -m launch.sweep --config=configs/ablations/clips.py --out=runs/clips --seeds=0,1,2

Published: action-free video of another robot helps tasks that the robot's own data lack (DreamZero, arXiv 2602.15922,
section 5). Compared at equal steps, so that more clips mean less robot data.
"""

from ml_collections import ConfigDict

from configs import quickstart


def get_config(arg: str = "") -> ConfigDict:
    """The quickstart with the clips' weight as a schedule, which may be zero."""
    c = quickstart.get_config(arg)
    del c.data.datasets.clips.weight
    c.data.datasets.clips.weight = ((0, 1.0),)
    return c


def get_sweep() -> list[dict]:
    """The base first. Robot data have a weight of 9."""
    weight = "data.datasets.clips.weight"
    return [{"name": "tenth"}, {"name": "none", weight: ((0, 0.0),)}, {"name": "half", weight: ((0, 9.0),)}]
