"""Few episodes with actions and many clips without, in closed loop at laptop scale: a Meta-World button again.

    python -m launch.record_tabletop --out=.cache/metaworld
    python -m launch.sweep --config=configs/ablations/labels.py --out=runs/labels --lock    # the study, in writing
    python -m launch.sweep --config=configs/ablations/labels.py --out=runs/labels

Published: world-action models learn from video that has no actions (DreamZero, arXiv 2602.15922, section 5). Actions
of a tenth of the recordings are given; the video of all of them is, half of every batch. Behaviour cloning trains on
the same mixture with no loss on video, and on the labelled episodes alone. Held-out recordings are the same for both
datasets. Measured: docs/results.md.
"""

from ml_collections import ConfigDict

from configs import metaworld


def get_config(arg: str = "") -> ConfigDict:
    """The button task and its arms, the actions of a few recordings and the video of all."""
    c = metaworld.get_config(arg)
    c.data.datasets.button.share = 0.1  # of the recordings: those that have actions
    c.data.datasets.clips = ConfigDict({
        "source": "rlds", "path": c.data.datasets.button.path, "embodiment": "video_only", "weight": ((0, 1.0),),
        "window_stride": 1, "schema": "generic", "state": "", "action": "",
        "rate": 10.0})  # as if: video_only counts ten frames a second, and each is wanted, as of the robot's
    return c


def get_sweep() -> list[dict]:
    """The base, video and actions, first."""
    alone = {"data.datasets.clips.weight": ((0, 0.0),)}
    cloning = {"loss.video_weight": 0.0}
    return [{"name": "base"}, {"name": "cloning", **cloning}, {"name": "no_clips", **alone},
            {"name": "cloning_no_clips", **cloning, **alone}]


def get_rollouts() -> dict[str, list[str]]:
    """Success in the task, seen as in the recordings."""
    return {"four_steps": ["--episodes=50", "--baselines=", "--videos=0", "--solver_steps=4"]}


def get_study() -> dict:
    """Locked by --lock before the first run."""
    return {"question": "Do clips without actions and a loss on video beat other ways to learn from few labels?",
            "primary": "solved, four_steps", "smallest_effect": 0.08, "seeds": list(range(12))}
