"""Diverse against repetitive recordings, as many of them: the drawer elsewhere in every episode, or in five places.

    (recordings, latents and the weights that runs start from: configs/ablations/joint.py)
    python -m launch.record_tabletop --task=ogbench-drawer --out=.cache/tabletop/ogbench-drawer/repetitive \\
        --episodes=57 --noise=0.1 --placements=5 --seed=4
    python -m launch.precompute --config=configs/ablations/joint.py:video --out=.cache/drawer_places_latents \\
        --config.data.datasets.labelled.path=.cache/tabletop/ogbench-drawer/repetitive/ogbench_rlds
    python -m launch.sweep --config=configs/ablations/diversity.py --out=runs/diversity --lock
    python -m launch.sweep --config=configs/ablations/diversity.py --out=runs/diversity --at_once=4

Published: as many hours of varied tasks teach more than of repeated ones (50% against 33%; DreamZero, arXiv 2602.15922,
table 4). The first arm is the joint one of configs/ablations/joint.py. Measured: docs/results.md.
"""

from ml_collections import ConfigDict

from configs.ablations import joint


def get_config(arg: str = "") -> ConfigDict:
    """The joint model."""
    return joint.get_config(arg)


def get_sweep() -> list[dict]:
    """The base, diverse recordings, first."""
    return [{"name": "joint"}, {"name": "repetitive", "data.cache": ".cache/drawer_places_latents",
                                "data.datasets.labelled.path":
                                    ".cache/tabletop/ogbench-drawer/repetitive/ogbench_rlds"}]


def get_rollouts() -> dict[str, list[str]]:
    """Success on starts that are the same for all."""
    return joint.get_rollouts()


def get_study() -> dict:
    """Locked by --lock before the first run."""
    return {"question": "Do as many repetitive recordings do better than diverse ones?", "primary": "solved, drawer",
            "smallest_effect": 0.08, "seeds": joint.SEEDS[:4]}
