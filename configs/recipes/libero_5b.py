"""LIBERO with the 5B: the field's best documented curve, on 8 GPUs or one v6e-8.

    hf download physical-intelligence/libero --repo-type dataset --local-dir data/libero
    hf download Wan-AI/Wan2.2-TI2V-5B-Diffusers --local-dir weights/wan22
    hf download Wan-AI/Wan2.1-I2V-14B-480P-Diffusers --include "image_encoder/*" --local-dir weights/wan21
    python -m launch.recipe libero_5b                                        # what is there and what is missing
    python -m launch.precompute --config=configs/recipes/libero_5b.py --out=cache/libero_5b
    python -m launch.import_weights --format=diffusers --source=weights/wan22/transformer \
        --config=configs/dreamzero_5b.py --out=runs/wan5b
    python -m launch.train --config=configs/recipes/libero_5b.py --config.data.cache=cache/libero_5b --workdir=RUN

Data: 1,693 episodes, 273,465 frames, 40 tasks in four suites, LeRobot v2.0 with pictures in its tables, 35 GB; no-op
steps are removed. Two views of 160 x 160 side by side, 16 actions a block, absolute, as RLinf trains it
(RLinf/RLinf at a3816b5, sft_dreamzero): 256 samples a step, 50,000 steps, 1e-5 along a cosine, full.

Storage: 35 GB and a cache of 273,465 windows x (.17 MB of latents + .66 MB of image features) = 230 GB.
Time: 50,000 steps x 3.2 s (a sum, below; not run) = 44 h on 8 v6e; money: hours x 8 chips x $2.70, list price of
September 2026 = $960. Planned, not run, on eight H100: 2.1 to 2.2 s, 39 to 40% MFU, 30 h (docs/plans.md).

Expected: success on LIBERO-Spatial in 512 trials, published by RLinf for this recipe: 7.8% at 3,000 steps, 66.4 at
6,000, 89.1 at 9,000, 88.5 at 12,000, 66.6 at 15,000, 96.7 at 18,000, 90.4 at 21,000: nothing to see before about 5,000,
and swings of 20 to 30 points from checkpoint to checkpoint. No simulator of LIBERO is here: serve the checkpoint
(launch.serve) to theirs, mujoco 3.3.2.

Known defects: the set says 10 Hz and its simulator runs at 20; the gripper's raw action is -1 open and 1 closed here,
0 closed and 1 open in other copies; some copies stand upside down (launch.check_embodiment shows it).
"""

from ml_collections import ConfigDict

from configs import dreamzero_5b, recipes

ARMS = ("", "debug")
GET = recipes.GET | {
    "data/libero": "hf download physical-intelligence/libero --repo-type dataset --local-dir data/libero  # 35 GB"}
# Seconds: 256 x 900 tokens x 6 x 5.6e9 parameters x 1.07 over 35% of the peak; neither planned nor measured.
COST = {"": {"chip": "v6e", "chips": 8, "seconds": 3.2, "windows": 273_465}}


def get_config(arg: str = "") -> ConfigDict:
    """`debug`: on a miniature."""
    recipes.check_arm("libero_5b", arg, ARMS)
    c = dreamzero_5b.get_config()
    recipes.full_size(c, "wan22")
    c.layout.actions_per_block = 16
    c.train.update(steps=50_000, global_batch_size=256, init_from="runs/wan5b")
    c.data.datasets.libero = ConfigDict({
        "source": "lerobot", "path": "data/libero", "embodiment": "libero", "weight": 1.0, "window_stride": 1,
        "images": {"image": "image", "wrist_image": "wrist_image"}, "state": "state", "action": "actions"})
    return recipes.miniature(c) if arg == "debug" else c
