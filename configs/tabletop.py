"""Tasks that are meant to leave room, at laptop scale: cloning few demonstrations solves some episodes, not all.

    python -m launch.record_tabletop --task=push-v3 --out=.cache/tabletop/push-v3 --parts=labelled,noisy,green
    python -m launch.train --config=configs/tabletop.py:push-v3 --workdir=DIR           # 50 episodes with actions
    python -m launch.train --config=configs/tabletop.py:push-v3,15,green --workdir=DIR  # 15, and video of another look
    python -m launch.rollout --workdir=DIR --task=push-v3 --episodes=50

The argument is a task, or several with + between them; how many episodes of each have actions, of LABELLED; and which
action-free video (200 episodes) is half of every batch, of VIDEO. With `--config.data.datasets.labelled.path=...` the
demonstrations are noisier ones, with `--config.loss.video_weight=0` the model is a cloning one. Model and training are
those of configs/metaworld.py. Measured: docs/results.md.
"""

from ml_collections import ConfigDict

from configs import metaworld

ROOT = ".cache/tabletop"
GRIPPER, OGBENCH = ("metaworld", "metaworld_gripper_20hz"), ("ogbench", "ogbench_20hz")
TASKS = {"soccer-v3": ("metaworld", "metaworld_20hz"), "push-v3": GRIPPER, "pick-place-v3": GRIPPER,
         "peg-insert-side-v3": GRIPPER, "coffee-pull-v3": GRIPPER, "sweep-into-v3": GRIPPER, "ogbench-cube": OGBENCH,
         "ogbench-drawer": OGBENCH, "ogbench-window": OGBENCH, "ogbench-button": OGBENCH}  # simulator, embodiment
LABELLED = {"5": 0.11, "15": 0.36, "50": 1.0}  # share of the recordings that are not held out
VIDEO = ("video", "green", "turned")  # the same look, another one, another camera


def get_config(arg: str = "push-v3") -> ConfigDict:
    """TASK, or TASK,LABELLED, or TASK,LABELLED,VIDEO."""
    given = arg.split(",")
    tasks, labelled, video = [*given, *("50", "")[len(given) - 1:]]
    choices = [(task, tuple(TASKS)) for task in tasks.split("+")]
    for value, known in (*choices, (labelled, tuple(LABELLED)), (video, ("", *VIDEO))):
        if value not in known:
            raise ValueError(f"configs/tabletop.py:{arg}: {value!r} is none of {', '.join(known)}")
    c = metaworld.get_config()
    c.data.datasets = ConfigDict()
    for number, task in enumerate(tasks.split("+")):
        c.data.datasets[f"labelled{number or ''}"] = recorded(task, share=LABELLED[labelled])
        if video:
            c.data.datasets[f"clips{number or ''}"] = filmed(task, video)
    return c


def recorded(task: str, part: str = "labelled", **changes) -> ConfigDict:
    """An entry of data.datasets: episodes with their actions."""
    simulator, embodiment = TASKS[task]
    return ConfigDict({"source": "rlds", "path": f"{ROOT}/{task}/{part}/{simulator}_rlds", "embodiment": embodiment,
                       "weight": 1.0, "window_stride": 1, "schema": "generic", "rate": 20.0} | changes)


def filmed(task: str, part: str, **changes) -> ConfigDict:
    """The same of video alone."""
    # as if: video_only counts ten frames a second, and each is wanted, as of the robot's
    return recorded(task, part, embodiment="video_only", state="", action="", rate=10.0, **changes)
