"""Joint video and action against cloning at equal compute, on a task with room: ogbench's drawer, 15 episodes.

    for task in cube window button drawer; do python -m launch.record_tabletop --task=ogbench-$task \\
        --out=.cache/tabletop/ogbench-$task --parts=labelled; done
    others="--config=configs/tabletop.py:ogbench-cube+ogbench-window+ogbench-button"
    python -m launch.precompute $others --out=.cache/others_latents
    python -m launch.train $others --config.data.cache=.cache/others_latents --config.train.steps=1500 \\
        --workdir=runs/others --seeds=0,1,2,3
    python -m launch.precompute --config=configs/ablations/joint.py:video --out=.cache/drawer_latents
    python -m launch.sweep --config=configs/ablations/joint.py --out=runs/joint --lock    # the study, in writing
    python -m launch.sweep --config=configs/ablations/joint.py --out=runs/joint --at_once=4

All runs start from the same weights, seed 0 of the four that learned the three other tasks of the scene: with a start
of its own for each seed, and from nothing more so, where a run begins decides its success more than what is compared
(docs/results.md). An answer is therefore about this start. Both arms are then one transformer with the same data,
order, noise, steps and FLOP; cloning has no loss on video. All read latents that were made once. Measured:
docs/results.md.
"""

from ml_collections import ConfigDict

from configs import tabletop

TASK = "ogbench-drawer"
STEPS, SEEDS = 600, list(range(8))
STARTS = [f"--task={TASK}", "--episodes=60", "--batch=60", "--baselines=", "--videos=0"]


def get_config(arg: str = "") -> ConfigDict:
    """The joint model, from a cache of latents; `video`: from the recordings, as the cache is made."""
    if arg not in ("", "video"):
        raise ValueError(f"configs/ablations/joint.py:{arg}: the only arm is 'video'")
    c = tabletop.get_config(f"{TASK},15")
    c.data.cache = "" if arg else ".cache/drawer_latents"
    c.train.init_from = "runs/others/seed_0"
    c.train.steps = c.checkpoint.every = STEPS
    return c


def weighing(dataset: ConfigDict, weight: float) -> ConfigDict:
    """The entry of data.datasets with a weight that may be zero, and may change."""
    return ConfigDict(dataset.to_dict() | {"weight": ((0, weight),)})


def get_sweep() -> list[dict]:
    """The base, cloning, first."""
    return [{"name": "cloning", "loss.video_weight": 0.0}, {"name": "joint"}]


def get_rollouts() -> dict[str, list[str]]:
    """Success on starts that are the same for all."""
    return {"drawer": STARTS}


def get_study() -> dict:
    """Locked by --lock before the first run."""
    return {"question": "Does a loss on video beside that on actions beat cloning, at equal compute?",
            "primary": "solved, drawer", "smallest_effect": 0.08, "seeds": SEEDS}
