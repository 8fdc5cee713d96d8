"""Diverse against repetitive recordings, as many of them: the drawer elsewhere in every episode, or in five places.

    (recordings and the weights that runs start from: configs/ablations/joint.py)
    python -m launch.record_tabletop --task=ogbench-drawer --out=.cache/tabletop/ogbench-drawer/repetitive \\
        --episodes=57 --noise=0.1 --placements=5 --seed=4
    python -m launch.precompute --config=configs/ablations/diversity.py:video --out=.cache/drawer_places_latents
    python -m launch.sweep --config=configs/ablations/diversity.py --out=runs/diversity --lock
    python -m launch.sweep --config=configs/ablations/diversity.py --out=runs/diversity

Published: as many hours of varied tasks teach more than of repeated ones (50% against 33%; DreamZero, arXiv 2602.15922,
table 4). Measured: docs/results.md.
"""

from ml_collections import ConfigDict

from configs import tabletop
from configs.ablations import joint


def get_config(arg: str = "") -> ConfigDict:
    """The joint model, with recordings in five places that weigh nothing yet; `video`: as the cache is made."""
    c = joint.get_config(arg)
    c.data.cache = "" if arg else ".cache/drawer_places_latents"
    labelled = c.data.datasets.labelled
    c.data.datasets.labelled = joint.weighing(labelled, 1.0)
    c.data.datasets.repetitive = joint.weighing(
        tabletop.recorded(joint.TASK, "repetitive", share=labelled.share), 0.0)
    return c


def get_sweep() -> list[dict]:
    """The base, diverse recordings, first."""
    return [{"name": "diverse"}, {"name": "repetitive", "data.datasets.labelled.weight": ((0, 0.0),),
                                  "data.datasets.repetitive.weight": ((0, 1.0),)}]


def get_rollouts() -> dict[str, list[str]]:
    """Success on starts that are the same for all."""
    return joint.get_rollouts()


def get_study() -> dict:
    """Locked by --lock before the first run."""
    return {"question": "Do as many repetitive recordings do better than diverse ones?", "primary": "solved, drawer",
            "smallest_effect": 0.08, "seeds": joint.SEEDS[:4]}
