"""What evaluation inside a run costs (launch/evaluation/held_out.py), counted in FLOP of the training beside it."""

from launch.evaluation.evaluator import NOISE_SAMPLES
from launch.setup.experiment import Experiment

FORWARD = 1 / 3  # share of a training sample's FLOP: backward is two products for each one forward


def share(experiment: Experiment, datasets: int, rows: int) -> float:
    """An upper bound on evaluation's FLOP per FLOP of training, between the first step and the last.

    A solver step of a block counts as its share of a whole training sequence, of which it takes no clean copies.
    datasets: how many the mixture has; rows: those of the mesh, to which batches are filled up.
    """
    config, family = experiment.config, experiment.family
    e = config.evaluate
    size = -(-e.batch_size // rows) * rows
    samples = 0.0
    if e.every:
        samples += datasets * -(-e.windows // size) * size * NOISE_SAMPLES * FORWARD / e.every
    if e.rollout_every:
        branches = 2 if {e.get("guidance", 1.0), e.get("action_guidance", 1.0)} != {1.0} else 1
        passes = (2 if family.imagines_video else 1) * branches * (e.solver_steps + e.get("action_steps", 0))
        samples += size * passes * FORWARD / e.rollout_every
    return samples / config.train.global_batch_size
