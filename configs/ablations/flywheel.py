"""The flywheel: imagined episodes with the actions that the model reads off them, beside the 15 recorded ones.

    (recordings and the weights that runs start from: configs/ablations/joint.py)
    file=--config=configs/ablations/flywheel.py
    python -m launch.record_tabletop --task=ogbench-drawer --out=.cache/tabletop/ogbench-drawer --parts=wander
    python -m launch.precompute $file:world_video --out=.cache/drawer_world_latents
    python -m launch.train $file:world --workdir=runs/dreamer
    python -m launch.imagine --workdir=runs/dreamer --task=ogbench-drawer --solver_steps=4     # does it obey?
    python -m launch.dream --workdir=runs/dreamer --task=ogbench-drawer --out=.cache/drawer_dreams \\
        --blocks=5 --most_apart=12
    python -m launch.precompute $file:video --out=.cache/drawer_dreams_latents
    python -m launch.sweep $file --out=runs/flywheel --lock
    python -m launch.sweep $file --out=runs/flywheel --at_once=4

The world learns from the same 15 episodes and from an arm that wanders in the same scene. Half of its blocks are
predicted from their actions; of the others it learns both, so that it can say which actions a video shows. Dreams are
half of every batch; their first pictures are of starts that no study is measured on. Measured: docs/results.md.
"""

from ml_collections import ConfigDict

from configs import tabletop, world
from configs.ablations import joint

ARMS = ("", "video", "world", "world_video")


def get_config(arg: str = "") -> ConfigDict:
    """The joint model, with dreams that weigh nothing yet, or the `world` that dreams; `video`: as a cache is made."""
    if arg not in ARMS:
        raise ValueError(f"configs/ablations/flywheel.py:{arg}: arms are {ARMS}")
    if arg.startswith("world"):
        c = world.get_config()
        c.data.datasets = ConfigDict({"labelled": tabletop.recorded(joint.TASK, share=tabletop.LABELLED["15"]),
                                      "wander": tabletop.recorded(joint.TASK, "wander")})
        c.data.cache = "" if arg.endswith("video") else ".cache/drawer_world_latents"
        c.data.statistics_per = "embodiment"
        c.noise.forward_dynamics = 0.5
        return c
    c = joint.get_config(arg)
    c.data.statistics_per = "embodiment"
    c.data.cache = "" if arg else ".cache/drawer_dreams_latents"
    c.data.datasets.dreams = joint.weighing(ConfigDict({
        "source": "lerobot", "path": ".cache/drawer_dreams", "embodiment": "ogbench_20hz",
        "images": {"image": "observation.images.image"}, "state": "observation.state", "action": "action"}), 0.0)
    return c


def get_sweep() -> list[dict]:
    """The base, the recorded episodes alone, first."""
    return [{"name": "recorded"}, {"name": "dreams", "data.datasets.dreams.weight": ((0, 1.0),)}]


def get_rollouts() -> dict[str, list[str]]:
    """Success on starts that are the same for all."""
    return joint.get_rollouts()


def get_study() -> dict:
    """Locked by --lock before the first run."""
    return {"question": "Do imagined episodes beside few recorded ones raise success, at equal steps?",
            "primary": "solved, drawer", "smallest_effect": 0.08, "seeds": joint.SEEDS}
