"""LingBot-VA on RoboTwin 2.0 as its release was post-trained (arXiv 2601.21998; Robbyant/lingbot-va at 58c2ae5).

    hf download robbyant/robotwin-clean-and-aug-lerobot --repo-type dataset --local-dir data/robotwin
    hf download robbyant/lingbot-va-base --local-dir weights/lingbot_va
    hf download Wan-AI/Wan2.2-TI2V-5B-Diffusers --local-dir weights/wan22
    python -m launch.recipe robotwin_lingbot_va                              # what is there and what is missing
    python -m launch.precompute --config=configs/recipes/robotwin_lingbot_va.py --out=cache/robotwin_lingbot_va
    python -m launch.import_weights --format=lingbot_va --source=weights/lingbot_va/transformer \
        --config=configs/lingbot_va_5b.py --out=runs/lingbot_va_base
    python -m launch.train --config=configs/recipes/robotwin_lingbot_va.py \
        --config.data.cache=cache/robotwin_lingbot_va --workdir=RUN

Data: 50 tasks of 50 clean and 500 randomised episodes, 27,500 at 50 Hz; video at 12.5 Hz, 16 actions a latent frame,
end-effector poses of both arms relative to the recording's first. Batch 64 (the maintainers' advice in their issue
27), 50,000 steps at a constant 1e-5 after 10 of warm-up: configs/lingbot_va_5b.py.

Storage: the cache has windows x 9 x 24 x 20 x 48 bfloat16 numbers, .41 MB each.
Time: 50,000 steps x 0.301 s (0.237 to 0.376) on 64 v5p (docs/plans.md; planned, not run) = 4.2 h; money: hours x 64
chips x $4.20, list price of September 2026 = $1,100.

Expected: curves are not published. Users report in the project's issues that most tasks are matched at 6,000 steps and
some drift by 33,000 (27), and that clean episodes alone peak at about 80% near 10,000 steps (96).

Known defects: the release trains on whole recordings of any length, this on windows of 33 frames; the simulator's
commits drift, so that success compares within one commit alone; its evaluation is not here (launch.serve
--protocol=lingbot_va serves its client).
"""

from ml_collections import ConfigDict

from configs import lingbot_va_5b, recipes

ARMS = ("", "debug")
GET = recipes.GET | {
    "data/robotwin": "hf download robbyant/robotwin-clean-and-aug-lerobot --repo-type dataset "
                     "--local-dir data/robotwin",
    "runs/lingbot_va_base": "python -m launch.import_weights --format=lingbot_va "
                            "--source=weights/lingbot_va/transformer --config=configs/lingbot_va_5b.py "
                            "--out=runs/lingbot_va_base"}
COST = {"": {"chip": "v5p", "chips": 64, "seconds": 0.301, "windows": 1_000_000}}


def get_config(arg: str = "") -> ConfigDict:
    """`debug`: on a miniature."""
    recipes.check_arm("robotwin_lingbot_va", arg, ARMS)
    c = lingbot_va_5b.get_config()
    recipes.full_size(c, "wan22")
    c.train.init_from = "runs/lingbot_va_base"
    c.data.datasets.robotwin = ConfigDict({
        "source": "lerobot", "path": "data/robotwin", "embodiment": "robotwin_dual_arm", "weight": 1.0,
        "window_stride": 16, "conventions": ("first_pose",), "action": "action",
        "images": {"head": "observation.images.cam_high", "left_wrist": "observation.images.cam_left_wrist",
                   "right_wrist": "observation.images.cam_right_wrist"}})
    return recipes.miniature(c) if arg == "debug" else c
