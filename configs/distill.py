"""A few-step student of the quickstart's model, or of any run, by consistency training.

    python -m launch.train --config=configs/distill.py --config.train.init_from=runs/quickstart --workdir=runs/student
    python -m launch.train --config=configs/distill.py:together --config.train.init_from=DIR --workdir=DIR2  # naive
    python -m launch.rollout --workdir=runs/student --task=pusht-slide --execute=8 --solver_steps=1    # also 2, 4

The student is its teacher's network, trained on: what it says of the clean data is held to what it says at a lower
noise level (world_model/families/base/student.py), of video and actions apart, or, naively, together as if they were
one. Its checkpoints name the teacher by workdir and hash; `consistency_loss` in metrics.jsonl is its curve. An update
takes one forward more than the teacher's, two where streams go apart.

Arms: families of configs/quickstart.py and their debug sizes; `together` before or alone. Another teacher's config
becomes a student's by `base.student(c)`. Measured: docs/results.md.
"""

from ml_collections import ConfigDict

from configs import base, quickstart

ARMS = tuple(f"{streams}{arm and '_'}{arm}".strip("_") for streams in ("", "together") for arm in quickstart.ARMS)


def get_config(arg: str = "") -> ConfigDict:
    """The teacher's config with a fifth of its steps, a tenth of its learning rate."""
    if arg not in ARMS:
        raise ValueError(f"configs/distill.py:{arg}: arms are {ARMS}")
    c = quickstart.get_config(arg.removeprefix("together").removeprefix("_"))
    base.student(c)
    c.distill.streams = "together" if arg.startswith("together") else "apart"
    c.train.init_from = "runs/quickstart"
    c.optimizer.learning_rate = 3e-4
    c.train.steps = max(c.train.steps // 5, 6)
    c.evaluate.solver_steps = 1
    if "solver" in c.evaluate:
        c.evaluate.solver = "euler"
    return c
