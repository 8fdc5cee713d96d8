"""Joint video and action against cloning at equal compute, on a task with room: ogbench's drawer, 50 episodes.

    python -m launch.record_tabletop --task=ogbench-drawer --out=.cache/tabletop/ogbench-drawer --parts=labelled
    python -m launch.precompute --config=configs/ablations/joint.py:video --out=.cache/drawer_latents
    python -m launch.sweep --config=configs/ablations/joint.py --out=runs/joint --lock    # the study, in writing
    python -m launch.sweep --config=configs/ablations/joint.py --out=runs/joint

Both arms are one transformer with the same data, order, initialisation, noise, steps and FLOP; cloning has no loss on
video. All read latents that were made once, so that no codec is fitted anew for a seed. Measured: docs/results.md.
"""

from ml_collections import ConfigDict

from configs import tabletop


def get_config(arg: str = "") -> ConfigDict:
    """Cloning, 1,600 steps from a cache of latents; `video`: from the recordings, as the cache is made."""
    if arg not in ("", "video"):
        raise ValueError(f"configs/ablations/joint.py:{arg}: the only arm is 'video'")
    c = tabletop.get_config("ogbench-drawer")
    c.data.cache = "" if arg else ".cache/drawer_latents"
    c.loss.video_weight = 0.0
    c.train.steps = 1600
    c.checkpoint.every = 1600
    return c


def get_sweep() -> list[dict]:
    """The base, cloning, first."""
    return [{"name": "cloning"}, {"name": "joint", "loss.video_weight": 1.0}]


def get_rollouts() -> dict[str, list[str]]:
    """Success on starts that are the same for all."""
    return {"drawer": ["--task=ogbench-drawer", "--episodes=60", "--batch=60", "--baselines=", "--videos=0"]}


def get_study() -> dict:
    """Locked by --lock before the first run."""
    return {"question": "Does a loss on video beside that on actions beat cloning, at equal compute?",
            "primary": "solved, drawer", "smallest_effect": 0.08, "seeds": list(range(5))}
