"""Half an hour of a new robot from a DreamZero checkpoint: ALOHA or SO-101, on one GPU.

Arms: `aloha` (the default) and `so101`, LoRA of the 14B from DreamZero-AgiBot's published weights (Apache-2.0) on one
card of 80 GB. Of the 5B, from a run of droid_14b.py:5b: `aloha_5b`, LoRA on 24 GB; `aloha_5b_last`, the last layer on
24; `aloha_5b_attention`, self-attention of all layers on 48; `aloha_5b_full`, everything on 80; each for so101 too. All
of them train the state and action modules. And debug arms.

    hf download lerobot/aloha_static_screw_driver --repo-type dataset --revision v2.1 --local-dir data/aloha
    hf download whosricky/so101-megamix-v1 --repo-type dataset --local-dir data/so101     # or your own
    hf download GEAR-Dreams/DreamZero-AgiBot --local-dir weights/dreamzero_agibot
    python -m launch.recipe few_shot                                         # what is there and what is missing
    python -m launch.check_embodiment --config=configs/recipes/few_shot.py --out=check.html
    python -m launch.precompute --config=configs/recipes/few_shot.py --out=cache/few_shot
    python -m launch.import_weights --format=dreamzero --source=weights/dreamzero_agibot \
        --config=configs/dreamzero_14b.py --out=runs/dreamzero_agibot
    python -m launch.train --config=configs/recipes/few_shot.py --config.data.cache=cache/few_shot --workdir=RUN

Data: one of these sets, or your own: 45 to 60 minutes, 50 to 80 clips of 20 to 40 s, 10 to 12 motions with two or three
wordings each (dreamzero0/dreamzero, pull request 76); the paper's new robot had 55 recordings of 11 tasks, 30 minutes.
LoRA has rank and alpha 4 on attention and MLP; latents and features come from the cache; what is frozen and moments are
held in bfloat16. Memory and time by arm and card: docs/recipes.md.

Storage: minutes x 60 x rate windows x 2.7 MB (14B) or .85 MB (5B): 30 minutes of SO-101 are 54,000, 146 or 46 GB.
Time: the 14B took 127 h for 144,000 samples on two H100 (Vizuara-AI-Lab/dreamzero-so101), 6.35 GPU-seconds a sample;
20,000 samples here: 35 h; money: hours x $11.06, an H100's list price of September 2026 = $390. Planned, not run:
10.9 s a step of 4 here; of the 5B 1.3 s (LoRA), 1.16 s (last layer) on an RTX 4090, 0.79 s (attention) on an L40S, of
which an A6000's is guessed, and 0.44 s (all) on an H100.

Expected: action error over 32 slots .23 at the start, .08 and below after 1,000 steps of 4 (the same and
aws-samples/sample-dreamzero-finetuning-on-sagemaker); joints within .01 rad^2 open loop, from .1 on they are mapped
wrongly; the gripper last, after about 50,000 samples where its convention differs. Compare with holding still, per key.

Known defects: LoRA costs a few points against full training (LIBERO 88.8 to 95.1 against 97.4 to 99.0, OpenMOSS/
EasyWAM). That arms fit their cards is planned, not run. A merged adapter belongs to the base that it was
trained on.
"""

from ml_collections import ConfigDict

from configs import dreamzero_5b, dreamzero_14b, recipes

ROBOTS = {
    "aloha": {"state": "observation.state", "action": "action",
              "images": {name: f"observation.images.{name}"
                         for name in ("cam_high", "cam_left_wrist", "cam_right_wrist")}},
    "so101": {"state": "observation.state", "action": "action",
              "images": {"front": "observation.images.front", "wrist": "observation.images.gripper"}}}
STATE_ACTION = r"^(state_encoder|action_(en|de)coder)\."
LORA = rf"lora_|{STATE_ACTION}"
TRAINED = {"": LORA, "_5b": LORA, "_5b_last": rf"^(final_block|head)\.|{STATE_ACTION}",
           "_5b_attention": rf"self_attn\.|{STATE_ACTION}", "_5b_full": ".*"}
ARMS = ("", *(f"{robot}{what}" for robot in ROBOTS for what in TRAINED), "debug", "so101_debug", "so101_5b_last_debug")
GET = recipes.GET | {
    "data/aloha": "hf download lerobot/aloha_static_screw_driver --repo-type dataset --revision v2.1 "
                  "--local-dir data/aloha",
    "data/so101": "hf download whosricky/so101-megamix-v1 --repo-type dataset --local-dir data/so101",
    "runs/dreamzero_agibot": "python -m launch.import_weights --format=dreamzero --source=weights/dreamzero_agibot "
                             "--config=configs/dreamzero_14b.py --out=runs/dreamzero_agibot",
    "runs/droid_5b": "python -m launch.train --config=configs/recipes/droid_14b.py:5b --workdir=runs/droid_5b"}
# What trains -> (chip, seconds a step): the first from a run, the last but one guessed, the others planned.
TIMES = {"": ("h100", 25.4), "_5b": ("rtx4090", 1.3), "_5b_last": ("rtx4090", 1.16), "_5b_attention": ("a6000", 1.8),
         "_5b_full": ("h100", 0.44)}


def trained(arm: str) -> str:
    """What an arm trains: a key of TRAINED."""
    return arm.removesuffix("debug").removesuffix("_").removeprefix("aloha").removeprefix("so101")


COST = {arm: {"chip": TIMES[trained(arm)][0], "chips": 1, "seconds": TIMES[trained(arm)][1], "windows": 54_000}
        for arm in ARMS if "debug" not in arm}


def get_config(arg: str = "") -> ConfigDict:
    """A robot's name, and behind it what trains, and `_debug`."""
    recipes.check_arm("few_shot", arg, ARMS)
    robot, what = "so101" if "so101" in arg else "aloha", trained(arg)
    size, codec, base = (dreamzero_5b, "wan22", "runs/droid_5b") if what else (
        dreamzero_14b, "wan21", "runs/dreamzero_agibot")
    c = size.get_config()
    recipes.full_size(c, codec)
    c.model.update(attention="cudnn", lora_rank=4 if "lora" in TRAINED[what] else 0, lora_alpha=4.0)
    c.mesh.update(data=1, fsdp=-1, context=1)
    c.train.update(steps=5_000, global_batch_size=4, accumulation=1 if what else 4, remat="full", init_from=base)
    c.optimizer.update(trainable=TRAINED[what], moments_dtype="bfloat16",
                       frozen_dtype="float32" if what == "_5b_full" else "bfloat16")
    c.evaluate.batch_size = 2
    c.data.datasets[robot] = ConfigDict({"source": "lerobot", "path": f"data/{robot}", "embodiment": robot,
                                         "weight": 1.0, "window_stride": 1, **ROBOTS[robot]})
    return recipes.miniature(c) if arg.endswith("debug") else c
