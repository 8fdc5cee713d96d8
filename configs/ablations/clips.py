"""Action-free video beside the labelled episodes, of the same look, another look, another camera, or before them.

    (recordings, latents and pretrained weights: configs/ablations/joint.py)
    python -m launch.sweep --config=configs/ablations/clips.py --out=runs/clips --lock
    python -m launch.sweep --config=configs/ablations/clips.py --out=runs/clips

Published: action-free video of another robot helps tasks that the robot's own data lack (DreamZero, arXiv 2602.15922,
section 5). 200 episodes of video are half of every batch, or all of the first half of the steps, so that at equal steps
more video means fewer labelled windows. The first arm is the joint one of configs/ablations/joint.py. Measured:
docs/results.md.
"""

from ml_collections import ConfigDict

from configs.ablations import joint

LABELLED = "data.datasets.labelled.weight"


def get_config(arg: str = "") -> ConfigDict:
    """The joint model."""
    return joint.get_config(arg)


def get_sweep() -> list[dict]:
    """The base, no clips, first."""
    def beside(part):
        return {f"data.datasets.{part}.weight": ((0, 1.0),)}
    before, after = (((0, first), (joint.STEPS // 2, 1.0 - first)) for first in (1.0, 0.0))
    return [{"name": "joint"}, {"name": "same_look", **beside("video")}, {"name": "other_look", **beside("green")},
            {"name": "other_camera", **beside("turned")},
            {"name": "before", LABELLED: after, "data.datasets.video.weight": before}]


def get_rollouts() -> dict[str, list[str]]:
    """Success on starts that are the same for all."""
    return joint.get_rollouts()


def get_study() -> dict:
    """Locked by --lock before the first run."""
    return {"question": "Does action-free video beside or before few labelled episodes raise success, at equal steps?",
            "primary": "solved, drawer", "smallest_effect": 0.08, "seeds": joint.SEEDS}
