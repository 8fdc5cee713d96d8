"""DreamZero-DROID: 14B from Wan2.1 on DROID, as arXiv 2602.15922 (section 4.1) and its published scripts have it.

Arms: the 14B; `5b`, the same on Wan2.2; `video_only`, 10,000 steps after the 14B in which clips without actions (robot
or human, here data/clips with captions.jsonl) stand 1:1 beside DROID (section 5, Q4); and their debug arms.

    gsutil -m cp -r gs://gresearch/robotics/droid/1.0.1 data/droid/
    gsutil cp gs://openpi-assets/droid/droid_sample_ranges_v1_0_1.json data/droid/
    hf download Wan-AI/Wan2.1-I2V-14B-480P-Diffusers --local-dir weights/wan21
    python -m launch.recipe droid_14b                                        # what is there and what is missing
    python -m launch.statistics --config=configs/recipes/droid_14b.py --out=data/droid/statistics.json
    python -m launch.precompute --config=configs/recipes/droid_14b.py --out=cache/droid_14b
    python -m launch.import_weights --format=diffusers --source=weights/wan21/transformer \
        --config=configs/dreamzero_14b.py --out=runs/wan14b
    python -m launch.train --config=configs/recipes/droid_14b.py --config.data.cache=cache/droid_14b --workdir=RUN

Data: RLDS 1.0.1, 1.7 TB, 95,600 episodes at 15 Hz, of which successes (82%) with an instruction remain, without idle
stretches (keep ranges published with openpi, good for 1.0.1 alone). Joints relative to the block's start, grippers
absolute, one normalisation by 1% and 99% quantiles. CC BY 4.0; published DreamZero-DROID weights are CC BY-NC 4.0.

Storage: 1.7 TB and a cache of windows x (2 x 1.01 MB of latents, the first frame's alone too, + .66 MB of image
features), 1.7 TB for about 614,000 windows (window_stride 24).
Time: 100,000 steps x 7.50 s (5.93 to 9.38) (docs/plans.md; planned, not run) = 208 h on 64 v5p; money: hours x
64 chips x $4.20, list price of September 2026 = $56,000 on demand. The 5B is not planned at this batch:
.39 s is twice its step of batch 64, 0.197 s (0.155 to 0.246), planned, not run.

Expected: published reference curves exist as pictures alone. Public forks of the code report, in their units (action
mean over 32 slots, of which 8 are used), video .18 and action .19 at step 0, .125 and .30 at step 10 of a full 14B run
on DROID; the action error falls within 1,000 steps, or dimensions are mapped wrongly. The gripper is learnt last.

Known defects: joint actions are commanded targets, not the next state; about 22% of the episodes have no instruction;
the paper names neither learning rate nor number of GPUs (the scripts' 1e-5 is taken).
"""

from ml_collections import ConfigDict

from configs import dreamzero_5b, dreamzero_14b, recipes

ARMS = ("", "5b", "video_only", "debug", "video_only_debug")
GET = recipes.GET | {
    "data/droid/1.0.1": "gsutil -m cp -r gs://gresearch/robotics/droid/1.0.1 data/droid/  # 1.7 TB",
    "data/droid/droid_sample_ranges_v1_0_1.json":
        "gsutil cp gs://openpi-assets/droid/droid_sample_ranges_v1_0_1.json data/droid/",
    "data/clips": "put clips and a captions.jsonl of {file, caption} there: 72 clips in the paper",
    "runs/droid_14b": "python -m launch.train --config=configs/recipes/droid_14b.py --workdir=runs/droid_14b",
}
COST = {"": {"chip": "v5p", "chips": 64, "seconds": 7.5, "windows": 614_000},  # seconds a step; windows to encode
        "5b": {"chip": "v5p", "chips": 64, "seconds": 0.39, "windows": 614_000},
        "video_only": {"chip": "v5p", "chips": 64, "seconds": 7.5, "windows": 615_000}}


def get_config(arg: str = "") -> ConfigDict:
    """`5b`: on Wan2.2. `video_only`: DROID and clips, after the 14B. `debug`: on miniatures."""
    recipes.check_arm("droid_14b", arg, ARMS)
    size, codec, base = (dreamzero_5b, "wan22", "runs/wan5b") if arg.startswith("5b") else (
        dreamzero_14b, "wan21", "runs/wan14b")
    c = size.get_config()
    recipes.full_size(c, codec)
    c.train.update(steps=100_000, global_batch_size=128, init_from=base)
    c.data.datasets.droid = ConfigDict({
        "source": "rlds", "path": "data/droid/1.0.1", "schema": "droid", "embodiment": "droid_released", "weight": 1.0,
        "successful": True, "described": True, "keep": "data/droid/droid_sample_ranges_v1_0_1.json",
        "window_stride": 24})
    if arg.startswith("video_only"):
        c.train.update(steps=10_000, init_from="runs/droid_14b")
        c.data.datasets.clips = ConfigDict({
            "source": "video_files", "path": "data/clips", "embodiment": "egodex", "weight": 1.0, "window_stride": 8})
    return recipes.miniature(c) if arg.endswith("debug") else c
