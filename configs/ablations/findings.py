"""What the papers found, in closed loop at laptop scale: a Meta-World button that stands elsewhere in every episode.

    python -m launch.record_tabletop --out=.cache/metaworld
    python -m launch.record_tabletop --out=.cache/metaworld_green --look=green --seed=1
    python -m launch.record_tabletop --out=.cache/metaworld_repetitive --placements=5 --seed=2
    python -m launch.sweep --config=configs/ablations/findings.py --out=runs/findings --seeds=0,1,2

Published: action-free video of another look helps where the robot's own data lack it, and as much data of varied
situations teach more than of repeated ones (DreamZero, arXiv 2602.15922, section 5 and table 4); with decoupled noise
one step does (DreamZero-Flash). Measured: docs/results.md. Every variant trains for as many steps, so that clips mean
less robot data.
"""

from ml_collections import ConfigDict

from configs import metaworld

CLIPS = "data.datasets.clips.weight"


def get_config(arg: str = "") -> ConfigDict:
    """The button task and its arms, with action-free recordings of the green look that weigh nothing yet."""
    c = metaworld.get_config(arg)
    c.data.datasets.clips = ConfigDict({
        "source": "rlds", "path": ".cache/metaworld_green/metaworld_rlds", "embodiment": "video_only",
        "weight": ((0, 0.0),), "window_stride": 1, "schema": "generic", "state": "", "action": "",
        "rate": 10.0})  # as if: video_only counts ten frames a second, and each is wanted, as of the robot's
    return c


def get_sweep() -> list[dict]:
    """The base, coupled noise on the robot's data alone, first. Its data have a weight of 1."""
    return [{"name": "base", "rollouts": ["four_steps", "one_step", "green"]},
            {"name": "cloning", "loss.video_weight": 0.0, "rollouts": ["four_steps"]},
            {"name": "decoupled", "noise.schedule": "decoupled", "rollouts": ["four_steps", "one_step"]},
            {"name": "clips", CLIPS: ((0, 0.5),), "rollouts": ["four_steps", "green"]},
            {"name": "repetitive", "data.datasets.button.path": ".cache/metaworld_repetitive/metaworld_rlds",
             "rollouts": ["four_steps"]}]


def get_rollouts() -> dict[str, list[str]]:
    """Denoising steps with the look of the robot's data, and the look of the clips."""
    common = ["--episodes=50", "--baselines=", "--videos=0"]
    return {"four_steps": [*common, "--solver_steps=4"], "one_step": [*common, "--solver_steps=1"],
            "green": [*common, "--solver_steps=4", "--task=button-press-topdown-v3-green"]}
