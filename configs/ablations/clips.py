"""Action-free video beside the labelled episodes, of the same look, another look, another camera, or before them.

    (recordings and the weights that runs start from: configs/ablations/joint.py)
    python -m launch.record_tabletop --task=ogbench-drawer --out=.cache/tabletop/ogbench-drawer \\
        --parts=video,green,turned
    python -m launch.precompute --config=configs/ablations/clips.py:video --out=.cache/drawer_clips_latents
    python -m launch.sweep --config=configs/ablations/clips.py --out=runs/clips --lock
    python -m launch.sweep --config=configs/ablations/clips.py --out=runs/clips --at_once=4

Published: action-free video of another robot helps tasks that the robot's own data lack (DreamZero, arXiv 2602.15922,
section 5). 200 episodes of video are half of every batch, or all of the first half of the steps, so that at equal steps
more video means fewer labelled windows. Measured: docs/results.md.
"""

from ml_collections import ConfigDict

from configs import tabletop
from configs.ablations import joint


def get_config(arg: str = "") -> ConfigDict:
    """The joint model, with action-free recordings that weigh nothing yet; `video`: as the cache is made."""
    c = joint.get_config(arg)
    c.data.cache = "" if arg else ".cache/drawer_clips_latents"
    c.data.datasets.labelled = joint.weighing(c.data.datasets.labelled, 1.0)
    for part in tabletop.VIDEO:
        c.data.datasets[part] = joint.weighing(tabletop.filmed(joint.TASK, part), 0.0)
    return c


def get_sweep() -> list[dict]:
    """The base, no clips, first."""
    def beside(part):
        return {f"data.datasets.{part}.weight": ((0, 1.0),)}
    before, after = (((0, first), (joint.STEPS // 2, 1.0 - first)) for first in (1.0, 0.0))
    return [{"name": "no_clips"}, {"name": "same_look", **beside("video")}, {"name": "other_look", **beside("green")},
            {"name": "other_camera", **beside("turned")},
            {"name": "before", "data.datasets.labelled.weight": after, "data.datasets.video.weight": before}]


def get_rollouts() -> dict[str, list[str]]:
    """Success on starts that are the same for all."""
    return joint.get_rollouts()


def get_study() -> dict:
    """Locked by --lock before the first run."""
    return {"question": "Does action-free video beside or before few labelled episodes raise success, at equal steps?",
            "primary": "solved, drawer", "smallest_effect": 0.08, "seeds": joint.SEEDS}
