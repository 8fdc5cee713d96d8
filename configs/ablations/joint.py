"""Joint video and action against cloning at equal compute, on a task with room: ogbench's drawer, 50 episodes.

    for task in cube window button drawer; do python -m launch.record_tabletop --task=ogbench-$task \\
        --out=.cache/tabletop/ogbench-$task --parts=labelled; done
    drawer="--task=ogbench-drawer --out=.cache/tabletop/ogbench-drawer"
    python -m launch.record_tabletop $drawer --parts=video,green,turned
    python -m launch.record_tabletop $drawer/repetitive --episodes=57 --noise=0.1 --placements=5 --seed=4
    python -m launch.precompute --config=configs/ablations/joint.py:video --out=.cache/drawer_latents
    python -m launch.train --config=configs/ablations/joint.py:others --workdir=runs/others --seeds=0,1,2,3
    python -m launch.sweep --config=configs/ablations/joint.py --out=runs/joint --lock    # the study, in writing
    python -m launch.sweep --config=configs/ablations/joint.py --out=runs/joint

Both arms are one transformer with the same data, order, initialisation, noise, steps and FLOP; cloning has no loss on
video. All read latents that were made once, so that no codec is fitted anew for a seed. Measured: docs/results.md.
"""

from ml_collections import ConfigDict

from configs import tabletop

TASK = "ogbench-drawer"
OTHERS = ("ogbench-cube", "ogbench-window", "ogbench-button")
LABELLED = "15"  # episodes of it that have actions
STEPS, SEEDS = 1600, list(range(8))
STARTS = [f"--task={TASK}", "--episodes=60", "--batch=60", "--baselines=", "--videos=0"]
ARMS = ("", "video", "others")


def get_config(arg: str = "") -> ConfigDict:
    """The joint model, from a cache of latents; `video`: from the recordings, as the cache is made; `others`: trained
    on the three other tasks of the scene."""
    if arg not in ARMS:
        raise ValueError(f"configs/ablations/joint.py:{arg}: arms are {ARMS}")
    c = tabletop.get_config(TASK)
    own, other = (((0, float((arg == "others") == of_others)),) for of_others in (False, True))
    none, share = ((0, 0.0),), tabletop.LABELLED["50" if arg == "video" else LABELLED]
    c.data.datasets = ConfigDict({"labelled": tabletop.recorded(TASK, weight=own, share=share),
                                  "repetitive": tabletop.recorded(TASK, "repetitive", weight=none, share=share)})
    for task in OTHERS:
        c.data.datasets[task.replace("-", "_")] = tabletop.recorded(task, weight=other)
    for part in tabletop.VIDEO:
        c.data.datasets[part] = tabletop.filmed(TASK, part, weight=none)
    c.data.statistics_per = "embodiment"
    c.data.cache = "" if arg == "video" else ".cache/drawer_latents"
    c.train.steps = c.checkpoint.every = STEPS
    return c


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
