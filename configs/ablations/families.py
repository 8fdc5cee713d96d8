"""Joint video and action against other families: LingBot-VA, video before its actions, and LingBot-VLA, actions alone.

    (recordings, and the joint arm's weights and latents: configs/ablations/joint.py)
    file=--config=configs/ablations/families.py
    python -m launch.precompute $file:lingbot_va_others_video --out=.cache/others_latents_va
    python -m launch.train $file:lingbot_va_others --workdir=runs/others_lingbot_va
    python -m launch.train $file:lingbot_vla_others --workdir=runs/others_lingbot_vla
    python -m launch.precompute $file:lingbot_va_video --out=.cache/drawer_latents_va
    python -m launch.sweep $file --out=runs/families --lock
    python -m launch.sweep $file --out=runs/families --at_once=4

As in configs/ablations/joint.py all runs of an arm start from the same weights, which learned the three other tasks in
the same steps. LingBot-VLA learns to see from pictures, the others have latents. Sizes are chosen for equal training
FLOP, steps are equal (configs/metaworld.py). Published: in order 98.6, jointly 97.6 (OpenWAM Stanford, arXiv
2610.07922). Measured: docs/results.md.
"""

from ml_collections import ConfigDict

from configs import metaworld, tabletop
from configs.ablations import joint

ARMS = ("", "lingbot_va", "lingbot_va_video", "lingbot_va_others", "lingbot_va_others_video", "lingbot_vla",
        "lingbot_vla_others")
OTHERS = "ogbench-cube+ogbench-window+ogbench-button"


def get_config(arg: str = "") -> ConfigDict:
    """The joint model, or another family; `others`: as the weights that it starts from are made; `video`: as a cache
    is."""
    if arg not in ARMS:
        raise ValueError(f"configs/ablations/families.py:{arg}: arms are {ARMS}")
    if not arg:
        return joint.get_config()
    family, others = arg.removesuffix("_video").removesuffix("_others"), "_others" in arg
    cached = family == "lingbot_va" and not arg.endswith("_video")  # LingBot-VLA reads pictures
    c = metaworld.get_config(family)
    c.data = (tabletop.get_config(OTHERS) if others else joint.get_config()).data
    c.data.cache = f".cache/{'others' if others else 'drawer'}_latents_va" if cached else ""
    c.train.init_from = "" if others else f"runs/others_{family}"
    c.train.steps = c.checkpoint.every = 1500 if others else joint.STEPS
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
            "primary": "solved, drawer", "smallest_effect": 0.08, "seeds": joint.SEEDS}
