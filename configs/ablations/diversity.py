"""Diverse against repetitive recordings, as many of them: the drawer elsewhere in every episode, or in five places.

    (recordings, latents and pretrained weights: configs/ablations/joint.py)
    python -m launch.sweep --config=configs/ablations/diversity.py --out=runs/diversity --lock
    python -m launch.sweep --config=configs/ablations/diversity.py --out=runs/diversity

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
    return [{"name": "joint"}, {"name": "repetitive", "data.datasets.labelled.weight": ((0, 0.0),),
                                "data.datasets.repetitive.weight": ((0, 1.0),)}]


def get_rollouts() -> dict[str, list[str]]:
    """Success on starts that are the same for all."""
    return joint.get_rollouts()


def get_study() -> dict:
    """Locked by --lock before the first run."""
    return {"question": "Do as many repetitive recordings do better than diverse ones?", "primary": "solved, drawer",
            "smallest_effect": 0.08, "seeds": joint.SEEDS}
