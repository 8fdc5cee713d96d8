"""LingBot-VLA on RoboTwin 2.0 as its release was post-trained (arXiv 2601.18692; Robbyant/lingbot-vla at 61ef6b1).

    hf download yuanty/robotwin2.0-fastwam --repo-type dataset --local-dir data/robotwin_joints
    hf download robbyant/lingbot-vla-4b --local-dir weights/lingbot_vla_4b
    hf download Qwen/Qwen2.5-VL-3B-Instruct --local-dir weights/qwen2_5_vl   # tokenizer.json alone
    python -m launch.recipe robotwin_lingbot_vla                             # what is there and what is missing
    python -m launch.import_weights --format=lingbot_vla --source=weights/lingbot_vla_4b \
        --config=configs/lingbot_vla_4b.py --out=runs/lingbot_vla_4b
    python -m launch.train --config=configs/recipes/robotwin_lingbot_vla.py --workdir=RUN

Data: 50 clean and 500 randomised episodes a task at 50 Hz, three cameras, 14 absolute joint angles; the example is of
five tasks. 256 samples a step for 20,000 steps ("69 epochs"), constant 1e-4, L1 error: configs/lingbot_vla_4b.py. Arm
`v2`: the 6B in its 55 slots as released (Robbyant/lingbot-vla-v2 at 36a9bab), 1,024 samples for 50,000 steps, 1e-4 to
5e-5, Muon, its routed experts at 2.83 times the rate.

Storage: nothing is precomputed, the vision tower trains; a cache would hold windows x 3 x 224 x 224 x 3 bytes.
Time: 20,000 steps x 1.17 s (0.93 to 1.46) on 8 v5p (docs/plans.md; planned, not run) = 6.5 h; money: hours x 8 chips x
$4.20, list price of September 2026 = $220. `v2`: 50,000 x 1.24 s (0.98 to 1.55) on 32 v5p: 17 h, $2,300.

Expected: curves are not published. Success over 50 tasks: 86.50% clean, 85.34% randomised (arXiv 2601.18692, table 2);
93.5% and 92.8% for version 2 (its model card).

Known defects: the release trains on the repeated last action of an episode, here masked (loss.past_end); a user with
batch 32 came far below (issue 21); the simulator's commits drift, so that success compares within one commit alone.
"""

from ml_collections import ConfigDict

from configs import lingbot_vla_4b, lingbot_vla_v2_6b, recipes

ARMS = ("", "v2", "debug", "v2_debug")
QWEN = {"": "weights/qwen2_5_vl", "v2": "weights/qwen3_vl"}
BASE = {"": "runs/lingbot_vla_4b", "v2": "runs/lingbot_vla_v2_6b"}
GET = {
    "data/robotwin_joints": "hf download yuanty/robotwin2.0-fastwam --repo-type dataset "
                            "--local-dir data/robotwin_joints",
    QWEN[""]: f"hf download Qwen/Qwen2.5-VL-3B-Instruct --local-dir {QWEN['']}",
    QWEN["v2"]: f"hf download Qwen/Qwen3-VL-4B-Instruct --local-dir {QWEN['v2']}",
    BASE[""]: "python -m launch.import_weights --format=lingbot_vla --source=weights/lingbot_vla_4b "
              f"--config=configs/lingbot_vla_4b.py --out={BASE['']}",
    BASE["v2"]: "python -m launch.import_weights --format=lingbot_vla_v2 --source=weights/lingbot_vla_v2_6b "
                f"--config=configs/lingbot_vla_v2_6b.py --out={BASE['v2']}",
    recipes.MINIATURES: recipes.GET[recipes.MINIATURES]}
COST = {"": {"chip": "v5p", "chips": 8, "seconds": 1.17, "windows": 1_600_000},
        "v2": {"chip": "v5p", "chips": 32, "seconds": 1.24, "windows": 16_000_000}}


def get_config(arg: str = "") -> ConfigDict:
    """`v2`: version 2. `debug`, `v2_debug`: the same slots on a miniature, through a tiny model."""
    recipes.check_arm("robotwin_lingbot_vla", arg, ARMS)
    arm = "v2" if arg.startswith("v2") else ""
    module, slots = (lingbot_vla_v2_6b, 55) if arm else (lingbot_vla_4b, 75)
    c = module.get_config("debug" if arg.endswith("debug") else "")
    c.data.datasets.robotwin = ConfigDict({
        "source": "lerobot", "path": "data/robotwin_joints", "embodiment": f"robotwin_joints_{slots}", "weight": 1.0,
        "window_stride": 1, "state": "observation.state", "action": "action",
        "images": {view: f"observation.images.{view}" for view in ("cam_high", "cam_left_wrist", "cam_right_wrist")}})
    c.encoders.tokenizer = f"{QWEN[arm]}/tokenizer.json"
    c.train.init_from = BASE[arm]
    if arm:
        c.optimizer.update(name="muon", b1=0.95, rate_factors=((r"mlp\.experts_", 2.83),))
    return miniature(c, slots) if arg.endswith("debug") else c


def miniature(c: ConfigDict, slots: int) -> ConfigDict:
    """A few steps of a tiny model, on ALOHA's miniature: it has the same columns."""
    c.data.datasets.robotwin.path = f"{recipes.MINIATURES}/aloha"
    c.data.holdout = 0.0
    c.encoders.tokenizer = ""
    c.model.update(action_dim=slots, state_dim=slots, views=3)
    c.train.update(steps=3, init_from="", compute_dtype="float32", log_every=1)
    c.checkpoint.update(every=3, keep_last=1)
    return c
