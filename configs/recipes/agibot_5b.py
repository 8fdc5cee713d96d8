"""AgiBot World with the 5B, in its real units.

    # agibot-world/AgiBotWorld-Beta (gated, CC BY-NC-SA 4.0), made LeRobot v2.1 task by task with Tavish9/any4lerobot
    python -m launch.recipe agibot_5b                                        # what is there and what is missing
    python -m launch.statistics --config=configs/recipes/agibot_5b.py --out=data/agibot_world/statistics.json
    python -m launch.precompute --config=configs/recipes/agibot_5b.py --out=cache/agibot_5b
    python -m launch.import_weights --format=diffusers --source=weights/wan22/transformer \
        --config=configs/dreamzero_5b.py --out=runs/wan5b
    python -m launch.train --config=configs/recipes/agibot_5b.py --config.data.cache=cache/agibot_5b --workdir=RUN

Data: about a million recordings at 30 Hz, 43.8 TB raw (Alpha: 92,214, 8.5 TB); one folder a task under
data/agibot_world, of those in TASKS. Robot `agibot_world`: a gripper's state is its opening in mm, its action 0 open to
1 closed, so that only joints, head and waist are relative. A frame's joint action equals its state: the next frame's is
learnt (`next_action`). 48 actions a block, 1.6 s, and video at 5 Hz, as arXiv 2602.15922 (appendix C) says; the code
published with it uses 24.

Storage: the tasks chosen, and windows (a window every 48 steps) x (.17 MB of latents + .66 MB of image features).
Time: 100,000 steps x twice the step of batch 64, 0.197 s (0.155 to 0.246) (docs/plans.md; planned, not run) = 11 h on
64 v5p; money: hours x 64 chips x $4.20, list price of September 2026 = $2,900.

Expected: nothing is published for this set with this model; DreamZero-AgiBot was trained on 500 hours that are not
public. Overfitted on a few recordings of one robot, a fork reports .166 to .026 in 900 steps for actions, .026 to .016
for video.

Known defects: leave out tasks whose actions are longer than their states (352 354 359 361 368 376 377 410 414 421),
whose videos are damaged (380 384 428 460 505 510 711), and those with dexterous hands (12 numbers in place of 2; from
475 on): OpenDriveLab/AgiBot-World and any4lerobot. Arms that stand still for long are in it.
"""

from ml_collections import ConfigDict

from configs import dreamzero_5b, recipes

ARMS = ("", "debug")
TASKS = (327,)  # those that you have: https://agibot-world.com lists them
PARTS = ("joint", "effector", "head", "waist")
GET = recipes.GET | {f"data/agibot_world/task_{task}": "any4lerobot, agibot2lerobot, on the task's raw folder"
                     for task in TASKS}
COST = {"": {"chip": "v5p", "chips": 64, "seconds": 0.39, "windows": 1_000_000}}


def get_config(arg: str = "") -> ConfigDict:
    """`debug`: on a miniature."""
    recipes.check_arm("agibot_5b", arg, ARMS)
    c = dreamzero_5b.get_config()
    recipes.full_size(c, "wan22")
    c.layout.actions_per_block = 48
    c.train.update(steps=100_000, global_batch_size=128, init_from="runs/wan5b")
    c.data.update(statistics_per="embodiment", size_exponent=1.0)
    for task in TASKS:
        c.data.datasets[f"task_{task}"] = entry(f"data/agibot_world/task_{task}")
    return recipes.miniature(c) if arg == "debug" else c


def entry(path: str) -> ConfigDict:
    """One task's folder."""
    return ConfigDict({
        "source": "lerobot", "path": path, "embodiment": "agibot_world", "weight": 1.0, "window_stride": 48,
        "conventions": ("next_action",),
        "images": {view: f"observation.images.{view}" for view in ("head", "hand_left", "hand_right")},
        "state": tuple(f"observation.states.{part}.position" for part in PARTS),
        "action": (*(f"actions.{part}.position" for part in PARTS), "actions.robot.velocity")})
