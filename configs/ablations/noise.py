"""Noise levels of video and action: coupled, high-noise and decoupled, each rolled out in 1 and 4 solver steps.

    (recordings, latents and pretrained weights: configs/ablations/joint.py)
    python -m launch.sweep --config=configs/ablations/noise.py --out=runs/noise --lock
    python -m launch.sweep --config=configs/ablations/noise.py --out=runs/noise --at_once=4

Coupled: DreamZero, arXiv 2602.15922; high noise and decoupled: DreamZero-Flash (docs/references/dreamzero.md), whose
claim is success in one step. The first arm is the joint one of configs/ablations/joint.py. Measured: docs/results.md.
"""

from ml_collections import ConfigDict

from configs.ablations import joint


def get_config(arg: str = "") -> ConfigDict:
    """The joint model."""
    return joint.get_config(arg)


def get_sweep() -> list[dict]:
    """The base, coupled levels, first."""
    return [{"name": "joint"}, {"name": "high_noise", "noise.schedule": "high_noise"},
            {"name": "decoupled", "noise.schedule": "decoupled"}]


def get_rollouts() -> dict[str, list[str]]:
    """Success in 4 solver steps, and in one."""
    return joint.get_rollouts() | {"1_steps": [*joint.STARTS, "--solver_steps=1"]}


def get_study() -> dict:
    """Locked by --lock before the first run."""
    return {"question": "Do decoupled or high noise levels beat coupled ones where one solver step is taken?",
            "primary": "solved, 1_steps", "smallest_effect": 0.08, "seeds": joint.SEEDS}
