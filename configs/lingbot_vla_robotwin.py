"""LingBot-VLA on RoboTwin 2.0, as its release was post-trained: 50 clean and 500 randomised episodes a task.

    python -m launch.import_weights --format=lingbot_vla --source=DIR --config=configs/lingbot_vla_4b.py --out=BASE
    python -m launch.statistics --config=configs/lingbot_vla_robotwin.py --out=statistics.json
    python -m launch.train --config=configs/lingbot_vla_robotwin.py --workdir=RUN --config.train.init_from=BASE

Data: a LeRobot set of the Aloha-AgileX episodes (robotwin-clean-and-aug-lerobot on the Hub) under data/robotwin, three
cameras at 50 Hz, 14 absolute joint angles. 256 samples a step for 20,000 steps (69 epochs of five tasks) at a constant
1e-4, L1 error. Success reported over 50 tasks: 86.50% clean, 85.34% randomised (arXiv 2601.18692, table 2); curves are
not published. Arm `v2`: the 6B in its 55 slots, 1,024 samples a step for 50,000 steps.

Known defects: the release also trains on the repeated last action of an episode, here masked (loss.past_end); the
simulator's commits drift, so that success is comparable within one commit alone.
"""

from ml_collections import ConfigDict

from configs import lingbot_vla_4b, lingbot_vla_v2_6b

ARMS = ("", "v2", "debug", "v2_debug")


def get_config(arg: str = "") -> ConfigDict:
    """`debug`: the same data through a tiny model."""
    if arg not in ARMS:
        raise ValueError(f"configs/lingbot_vla_robotwin.py:{arg}: arms are {ARMS}")
    version, size = (lingbot_vla_v2_6b, 55) if arg.startswith("v2") else (lingbot_vla_4b, 75)
    debug = arg.endswith("debug")
    c = version.get_config("debug" if debug else "")
    c.data.datasets.robotwin = ConfigDict({
        "source": "lerobot", "path": "data/robotwin", "embodiment": f"robotwin_joints_{size}", "weight": 1.0,
        "window_stride": 1})
    if debug:
        c.model.update(action_dim=size, state_dim=size, views=3)
        c.train.update(steps=4, global_batch_size=4, compute_dtype="float32", log_every=1)
    return c
