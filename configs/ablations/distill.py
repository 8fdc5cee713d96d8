"""Few-step students: one consistency for each modality against both together, in 1 and 4 solver steps.

    (the joint arm of configs/ablations/joint.py in runs/joint: a teacher for each seed)
    python -m launch.sweep --config=configs/ablations/distill.py --out=runs/distill --lock
    python -m launch.sweep --config=configs/ablations/distill.py --out=runs/distill --at_once=4

Published: the naive form, both together, loses most of the success (24% against 85%). Method: configs/distill.py.
Measured: docs/results.md.
"""

from ml_collections import ConfigDict

from configs import base
from configs.ablations import joint, noise


def get_config(arg: str = "") -> ConfigDict:
    """The joint model's config for a student: half of its steps, a tenth of its learning rate."""
    c = joint.get_config(arg)
    base.student(c)
    c.optimizer.learning_rate *= 0.1
    c.train.steps = c.checkpoint.every = joint.STEPS // 2
    c.train.init_from = "runs/joint/joint/seed_{seed}"
    c.evaluate.solver = "euler"
    return c


def get_sweep() -> list[dict]:
    """The naive form first."""
    return [{"name": "together", "distill.streams": "together"}, {"name": "apart"}]


def get_rollouts() -> dict[str, list[str]]:
    """Success by solver steps."""
    return noise.get_rollouts()


def get_study() -> dict:
    """Locked by --lock before the first run."""
    return {"question": "Does one consistency for each modality beat both together where one solver step is taken?",
            "primary": "solved, 1_steps", "smallest_effect": 0.08, "seeds": joint.SEEDS}
