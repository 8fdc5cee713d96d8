"""Joint video and action against other families: LingBot-VA, video before its actions, and LingBot-VLA, actions alone.

    (recordings: configs/ablations/joint.py; LingBot-VLA learns to see from pictures, the others have latents)
    python -m launch.precompute --config=configs/ablations/families.py:lingbot_va_video --out=.cache/drawer_latents_va
    python -m launch.sweep --config=configs/ablations/families.py --out=runs/families --lock
    python -m launch.sweep --config=configs/ablations/families.py --out=runs/families

Sizes are chosen for equal training FLOP, steps are equal (configs/metaworld.py). Published: in order 98.6, jointly 97.6
(OpenWAM Stanford, arXiv 2610.07922). Measured: docs/results.md.
"""

from ml_collections import ConfigDict

from configs import metaworld
from configs.ablations import joint

ARMS = ("", "lingbot_va", "lingbot_va_video", "lingbot_vla")


def get_config(arg: str = "") -> ConfigDict:
    """The joint model, or another family; `lingbot_va_video`: as that family's cache is made."""
    if arg not in ARMS:
        raise ValueError(f"configs/ablations/families.py:{arg}: arms are {ARMS}")
    c = joint.get_config()
    if arg:
        data, c = c.data, metaworld.get_config(arg.removesuffix("_video"))
        c.data = data
        c.data.cache = ".cache/drawer_latents_va" if arg == "lingbot_va" else ""
    c.train.init_from = ""
    c.train.steps = c.checkpoint.every = 1600
    return c


def get_sweep() -> list[dict]:
    """The base, joint, first."""
    return [{"name": "joint"}, {"name": "lingbot_va", "arm": "lingbot_va"},
            {"name": "lingbot_vla", "arm": "lingbot_vla"}]


def get_rollouts() -> dict[str, list[str]]:
    """Success on starts that are the same for all."""
    return joint.get_rollouts()


def get_study() -> dict:
    """Locked by --lock before the first run."""
    return {"question": "Does another family beat joint video and action, at equal compute?",
            "primary": "solved, drawer", "smallest_effect": 0.08, "seeds": joint.SEEDS[:4]}
