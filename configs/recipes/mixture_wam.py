"""A mixture for a world-action model: DROID, Bridge, RT-1, AgiBot World and people's hands, on the 5B or the 14B.

    # data/droid as in droid_14b.py, data/agibot_world as in agibot_5b.py
    gsutil -m cp -r gs://gresearch/robotics/fractal20220817_data/0.1.0 data/fractal/
    wget -r -np -nH --cut-dirs=5 -P data/bridge \
        https://rail.eecs.berkeley.edu/datasets/bridge_release/data/tfds/bridge_dataset/1.0.0/
    # apple/ml-egodex: its mp4 files and a captions.jsonl of {file, caption} in data/egodex (CC BY-NC-ND)
    python -m launch.recipe mixture_wam                                      # what is there and what is missing
    python -m launch.inspect_data --config=configs/recipes/mixture_wam.py --out=mixture.html
    python -m launch.precompute --config=configs/recipes/mixture_wam.py --out=cache/mixture_wam
    python -m launch.train --config=configs/recipes/mixture_wam.py --config.data.cache=cache/mixture_wam --workdir=RUN

Data: robots together have three parts of four, clips without actions one. Inside, a set's share is its weight times the
square root of its size (temperature 2). All share one action layout: left arm and gripper, right arm and gripper,
torso, base; one-armed robots use the left. Bridge and RT-1 are told as OpenVLA tells them. A block has 8 actions: 1.6 s
of Bridge, 2.7 of RT-1, .53 of DROID, .27 of AgiBot. The numbers of steps are the same, the seconds are not.

Storage: DROID 1.7 TB, Bridge 124 GB, RT-1 and AgiBot's tasks, EgoDex 1.7 TB; windows x .83 MB in the cache (5B).
Time: 200,000 steps of 256 x 0.503 s (0.398 to 0.629) (docs/plans.md; planned, not run) = 27.9 h on 64 v5p; money:
hours x 64 chips x $4.20, list price of September 2026 = $7,500. The 14B is not planned here: 15.0 s are twice the
planned step of batch 128.

Expected: nothing is published for this mixture. OpenVLA's weights of the same sets by size are fractal .54,
bridge 1, droid .06 (prismatic/vla/datasets/rlds/oxe/mixtures.py).

Known defects: Bridge in the bucket of Open X-Embodiment is an older copy; take the project's own. RT-1's instructions
are few. EgoDex's rate is resampled, its hands' poses are not used.
"""

from ml_collections import ConfigDict

from configs import dreamzero_5b, dreamzero_14b, recipes
from configs.recipes import agibot_5b, droid_14b

ARMS = ("", "14b", "debug")
GET = droid_14b.GET | agibot_5b.GET | {
    "data/bridge/1.0.0": "wget -r -np -nH --cut-dirs=5 -P data/bridge "
                         "https://rail.eecs.berkeley.edu/datasets/bridge_release/data/tfds/bridge_dataset/1.0.0/",
    "data/fractal/0.1.0": "gsutil -m cp -r gs://gresearch/robotics/fractal20220817_data/0.1.0 data/fractal/",
    "data/egodex": "apple/ml-egodex: mp4 files and a captions.jsonl of {file, caption}"}
COST = {"": {"chip": "v5p", "chips": 64, "seconds": 0.503, "windows": 4_000_000},
        "14b": {"chip": "v5p", "chips": 64, "seconds": 15.0, "windows": 4_000_000}}


def get_config(arg: str = "") -> ConfigDict:
    """`14b`: the same on Wan2.1. `debug`: on miniatures."""
    recipes.check_arm("mixture_wam", arg, ARMS)
    size, codec, base = (dreamzero_14b, "wan21", "runs/wan14b") if arg == "14b" else (
        dreamzero_5b, "wan22", "runs/wan5b")
    c = size.get_config()
    recipes.full_size(c, codec)
    c.layout.actions_per_block = 8
    c.train.update(steps=200_000, global_batch_size=256, init_from=base)
    c.data.update(size_exponent=0.5, statistics_per="embodiment")
    droid = droid_14b.get_config().data.datasets.droid
    droid.update(embodiment="droid", window_stride=8)
    agibot = {f"task_{task}": agibot_5b.entry(f"data/agibot_world/task_{task}") for task in agibot_5b.TASKS}
    c.data.datasets = ConfigDict({
        "robots": {"weight": 3.0, "datasets": {
            "droid": droid, **agibot,
            "bridge": rlds("data/bridge/1.0.0", "bridge_v2", "widowx", "openvla_bridge"),
            "fractal": rlds("data/fractal/0.1.0", "rt_1", "google_robot_absolute", "openvla_rt_1")}},
        "clips": {"weight": 1.0, "datasets": {  # a group, so that its size does not count
            "egodex": {"source": "video_files", "path": "data/egodex", "embodiment": "egodex", "weight": 1.0,
                       "window_stride": 8}}}})
    return recipes.miniature(c) if arg == "debug" else c


def rlds(path: str, schema: str, robot: str, convention: str) -> ConfigDict:
    """A set of Open X-Embodiment."""
    return ConfigDict({"source": "rlds", "path": path, "schema": schema, "embodiment": robot, "weight": 1.0,
                       "window_stride": 4, "conventions": (convention,)})
