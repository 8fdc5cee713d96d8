"""Where the spread of success over trainings comes from: initialisation crossed with data order and noise, at two
checkpoints, on starts that are the same for all.

    python -m launch.record_tabletop --task=ogbench-drawer --out=.cache/tabletop/ogbench-drawer --parts=labelled
    python -m launch.precompute --config=configs/ablations/joint.py:video --out=.cache/drawer_latents
    for i in 0 1 2; do python -m launch.train --config=configs/ablations/variance.py --config.seed=$((1000 + i)) \\
        --config.train.steps=1 --config.optimizer.learning_rate=1e-12 --workdir=runs/variance_init/$i; done
    python -m launch.sweep --config=configs/ablations/variance.py --out=runs/variance --lock
    python -m launch.sweep --config=configs/ablations/variance.py --out=runs/variance
    python -m benchmarks.variance runs/variance

A variant is an initialisation, the weights of a training that learned nothing; a seed is then the order of the data and
the noise. Measured: docs/results.md.
"""

from ml_collections import ConfigDict

from configs.ablations import joint

STARTS = ["--task=ogbench-drawer", "--episodes=60", "--batch=60", "--baselines=", "--videos=0"]


def get_config(arg: str = "") -> ConfigDict:
    """The cloning arm of configs/ablations/joint.py for half as many steps, with two checkpoints kept."""
    c = joint.get_config(arg)
    c.train.steps = 800
    c.checkpoint.update(every=100, keep_last=2)
    return c


def get_sweep() -> list[dict]:
    """Three initialisations."""
    return [{"name": f"init_{i}", "train.init_from": f"runs/variance_init/{i}"} for i in range(3)]


def get_rollouts() -> dict[str, list[str]]:
    """The last checkpoint, and the one 100 steps before."""
    return {"last": STARTS, "before": [*STARTS, "--step=700"]}


def get_study() -> dict:
    """Locked by --lock before the first run."""
    return {"question": "Does the initialisation alone move success, at equal data order and noise?",
            "primary": "solved, last", "smallest_effect": 0.08, "seeds": [0, 1, 2]}
