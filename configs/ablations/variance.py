"""Where the spread of success over trainings comes from: the weights that a training starts from crossed with the data
order and noise, at two checkpoints, on starts that are the same for all.

    (recordings, latents and the weights that runs start from: configs/ablations/joint.py)
    python -m launch.sweep --config=configs/ablations/variance.py --out=runs/variance --lock
    python -m launch.sweep --config=configs/ablations/variance.py --out=runs/variance
    python -m benchmarks.variance runs/variance

A variant is a start; a seed is then the order of the data and the noise. Measured so far from random starts, by the
commit that docs/results.md names.
"""

from ml_collections import ConfigDict

from configs.ablations import joint


def get_config(arg: str = "") -> ConfigDict:
    """The cloning arm of configs/ablations/joint.py with two checkpoints kept."""
    c = joint.get_config(arg)
    c.loss.video_weight = 0.0
    c.checkpoint.update(every=joint.STEPS // 6, keep_last=2)
    return c


def get_sweep() -> list[dict]:
    """Three starts."""
    return [{"name": f"start_{i}", "train.init_from": f"runs/others/seed_{i}"} for i in range(3)]


def get_rollouts() -> dict[str, list[str]]:
    """The last checkpoint, and the one before."""
    return {"last": joint.STARTS, "before": [*joint.STARTS, f"--step={joint.STEPS - joint.STEPS // 6}"]}


def get_study() -> dict:
    """Locked by --lock before the first run."""
    return {"question": "Does the start alone move success, at equal data order and noise?",
            "primary": "solved, last", "smallest_effect": 0.08, "seeds": [0, 1, 2]}
