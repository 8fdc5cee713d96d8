"""Noise schedules at laptop scale: coupled, high-noise and decoupled levels of video and action.

    python -m launch.sweep --config=configs/ablations/noise.py --out=runs/noise --seeds=0,1,2

Coupled: DreamZero, arXiv 2602.15922; high noise and decoupled: DreamZero-Flash (docs/references/dreamzero.md).
"""

from ml_collections import ConfigDict

from configs import quickstart


def get_config(arg: str = "") -> ConfigDict:
    """The quickstart, and its arms."""
    return quickstart.get_config(arg)


def get_sweep() -> dict:
    """The base first."""
    return {"noise.schedule": ["coupled", "high_noise", "decoupled"]}
